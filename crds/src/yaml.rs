//! YAML for `kubectl`, which reads YAML 1.1: there a bare `Off` is a boolean. Emitters of YAML 1.2 leave such words bare,
//! and an enum of the CRD would silently become another one.

use serde_json::Value;

/// Words that YAML 1.1 takes for booleans, in lower case.
const BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
/// Stands for a quote until the text is there. No manifest contains it.
const QUOTE: &str = "towpath-yaml-quote-";

/// The value as YAML that readers of 1.1 and of 1.2 understand alike.
///
/// # Errors
/// When the value cannot be written as YAML, which plain JSON values always can.
pub fn to_string(value: &Value) -> Result<String, serde_yaml::Error> {
    let text = serde_yaml::to_string(&mark(value))?;
    let lines = text.lines().map(|line| match line.split_once(QUOTE) {
        Some((before, word)) => format!("{before}'{word}'\n"),
        None => format!("{line}\n"),
    });
    Ok(lines.collect())
}

/// Marks every string that YAML 1.1 would take for a boolean and that an emitter of 1.2 leaves bare.
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
    fn words_that_older_readers_take_for_booleans_are_quoted() {
        let value = json!({"a": ["Enforce", "Off", "True", true], "b": {"c": "no"}, "d": "on\noff", "e": "offer"});
        let text = to_string(&value).unwrap();
        assert_eq!(text, "a:\n- Enforce\n- 'Off'\n- 'True'\n- true\nb:\n  c: 'no'\nd: |-\n  on\n  off\ne: offer\n");
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }
}
