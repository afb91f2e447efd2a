//! YAML for `kubectl`, which reads YAML 1.1: there a bare `Off` is a boolean. Emitters of YAML 1.2 do not quote such words,
//! so an enum value of the CRD would silently become a boolean.

use serde_json::Value;

/// Words that YAML 1.1 reads as booleans, in lower case.
const BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
/// Marks a word to be quoted in the emitted text. No manifest contains it.
const QUOTE: &str = "towpath-yaml-quote-";

/// The value as YAML that parsers of 1.1 and of 1.2 read alike.
///
/// # Errors
/// If the value cannot be written as YAML; JSON values always can.
pub fn to_string(value: &Value) -> Result<String, serde_yaml::Error> {
    let text = serde_yaml::to_string(&mark(value))?;
    let lines = text.lines().map(|line| match line.split_once(QUOTE) {
        Some((before, word)) => format!("{before}'{word}'\n"),
        None => format!("{line}\n"),
    });
    Ok(lines.collect())
}

/// Marks every string that YAML 1.1 reads as a boolean and that an emitter of 1.2 does not quote.
fn mark(value: &Value) -> Value {
    match value {
        Value::String(word) if is_boolean(word) => Value::String(format!("{QUOTE}{word}")),
        Value::Array(items) => items.iter().map(mark).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), mark(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn is_boolean(word: &str) -> bool {
    BOOLEANS.contains(&word.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_that_yaml_1_1_reads_as_booleans_are_quoted() {
        let value = json!({"a": ["Enforce", "Off", "True", true], "b": {"c": "no"}, "d": "on\noff", "e": "offer"});
        let text = to_string(&value).unwrap();
        assert_eq!(text, "a:\n- Enforce\n- 'Off'\n- 'True'\n- true\nb:\n  c: 'no'\nd: |-\n  on\n  off\ne: offer\n");
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }
}
