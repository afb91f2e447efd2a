//! The CNI protocol with the real binary: error codes of invalid calls, versions and results.

mod support;

use serde_json::{Value, json};
use support::{Node, PluginOutput, Pod, wait_for_output};

/// The variables of a valid call for a pod.
const VALID: &[(&str, &str)] = &[
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/gone"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// Calls the plugin with the valid variables, one of them replaced.
fn call(node: &Node, but: (&str, &str), input: &str) -> PluginOutput {
    let env: Vec<_> = VALID.iter().map(|(name, value)| (*name, if *name == but.0 { but.1 } else { *value })).collect();
    wait_for_output(node.start(&env, input))
}

#[test]
fn every_invalid_call_has_its_error_code() {
    let node = Node::new(&["10.244.1.0/24"]);
    let good = node.conf("1.0.0", &json!({})).to_string();
    let long = "a234567890123456";
    for (but, input, code, named, why) in [
        (("CNI_COMMAND", ""), good.as_str(), 4, "CNI_COMMAND", "no command"),
        (("CNI_COMMAND", "FETCH"), &good, 4, "FETCH", "an unknown command"),
        (("CNI_CONTAINERID", ""), &good, 4, "CNI_CONTAINERID", "no container id"),
        (("CNI_CONTAINERID", "../c1"), &good, 4, "CNI_CONTAINERID", "an invalid container id"),
        (("CNI_IFNAME", ""), &good, 4, "CNI_IFNAME", "no interface name"),
        (("CNI_IFNAME", long), &good, 4, "CNI_IFNAME", "an interface name of sixteen characters"),
        (("CNI_IFNAME", "a/b"), &good, 4, "CNI_IFNAME", "an interface name with a slash"),
        (("CNI_NETNS", ""), &good, 4, "CNI_NETNS", "no namespace at ADD"),
        (("CNI_ARGS", ""), &good, 4, "K8S_POD_NAME", "no pod"),
        (("", ""), "no json", 6, "JSON", "no JSON"),
        (("", ""), "", 6, "JSON", "no input"),
        (
            ("", ""),
            "{\"cniVersion\":\"9.9.9\",\"name\":\"n\"}",
            1,
            "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            "a future version",
        ),
        (("", ""), "{\"name\":\"n\"}", 1, "0.1.0", "a missing version means 0.1.0"),
        (("", ""), "{\"cniVersion\":\"1.0.0\"}", 7, "name", "no name"),
        (("", ""), "{\"cniVersion\":\"1.0.0\",\"name\":\"a/b\"}", 7, "a/b", "an invalid name"),
        (("", ""), &good, 8, "/run/netns/gone", "the namespace does not exist"),
        (("CNI_COMMAND", "CHECK"), &good, 7, "prevResult", "CHECK without prevResult"),
    ] {
        let error = call(&node, but, input);
        assert_eq!(error.code(), code, "{why}: {error:?}");
        assert!(error.text().contains(named), "{why}: {error:?}");
        assert!(error.json["cniVersion"].is_string(), "{why}: {error:?}");
        assert_eq!(error.stderr, "", "{why}");
    }
    node.assert_empty("only invalid calls");
}

/// The order of the reference plugins (`pkg/skel` of containernetworking/cni): missing variables, the configuration,
/// and only then the values of the variables.
#[test]
fn an_invalid_configuration_is_reported_before_a_variable_with_an_invalid_value() {
    let node = Node::new(&["10.244.1.0/24"]);
    for (variable, input, code, why) in [
        (("CNI_ARGS", ""), "no json", 6, "no pod, no JSON"),
        (("CNI_ARGS", ""), "{\"cniVersion\":\"9.9.9\",\"name\":\"n\"}", 1, "no pod, a future version"),
        (("CNI_ARGS", ""), "{\"cniVersion\":\"1.0.0\"}", 7, "no pod, no name"),
        (("CNI_CONTAINERID", "../c1"), "{\"cniVersion\":\"1.0.0\"}", 7, "an invalid container id, no name"),
        (("CNI_COMMAND", "FETCH"), "{\"cniVersion\":\"1.0.0\"}", 7, "an unknown command, no name"),
        (("CNI_CONTAINERID", ""), "no json", 4, "a missing variable comes first"),
        (("CNI_ARGS", ""), "{\"cniVersion\":\"1.0.0\",\"name\":\"n\"}", 4, "no pod alone"),
    ] {
        assert_eq!(call(&node, variable, input).code(), code, "{why}");
    }
    let error = call(&node, ("CNI_ARGS", ""), "{\"cniVersion\":\"0.4.0\",\"name\":\"n\"}");
    assert_eq!(error.json["cniVersion"], "0.4.0", "the error has the configuration's version");
}

#[test]
fn missing_variables_are_named_together() {
    let node = Node::new(&["10.244.1.0/24"]);
    let error = wait_for_output(node.start(&[("CNI_COMMAND", "ADD")], "{}"));
    assert_eq!(error.code(), 4);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(error.text().contains(name), "{name}: {error:?}");
    }
}

#[test]
fn a_command_newer_than_the_configurations_version_is_rejected() {
    let node = Node::new(&["10.244.1.0/24"]);
    for (command, old, new, why) in [
        ("GC", "1.0.0", "1.1.0", "GC came with 1.1.0"),
        ("STATUS", "1.0.0", "1.1.0", "STATUS came with 1.1.0"),
        ("CHECK", "0.3.1", "0.4.0", "CHECK came with 0.4.0"),
    ] {
        let code = |version: &str| {
            let error = call(&node, ("CNI_COMMAND", command), &node.conf(version, &json!({})).to_string());
            assert_eq!(error.json["cniVersion"], version);
            error.code()
        };
        assert_eq!(code(old), 1, "{why}");
        assert_ne!(code(new), 1, "{why}");
    }
}

#[test]
fn versions_are_listed_without_a_configuration() {
    let node = Node::new(&["10.244.1.0/24"]);
    for input in ["", "{\"cniVersion\":\"1.0.0\"}", "garbage"] {
        let versions = wait_for_output(node.start(&[("CNI_COMMAND", "VERSION")], input)).ok();
        assert_eq!(versions["cniVersion"], "1.1.0");
        assert_eq!(versions["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn the_program_prints_its_version() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_towpath")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("towpath {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn add_returns_a_result_in_every_version() {
    let node = Node::new(&["10.244.1.0/24"]);
    let _agent = node.good_agent();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new("c1");
        let conf = node.conf(version, &json!({}));
        let result = wait_for_output(node.start_for("ADD", &pod, &conf)).ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["sandbox"], pod.netns_path());
        let with_result = node.conf(version, &json!({"prevResult": result}));
        assert_eq!(wait_for_output(node.start_for("DEL", &pod, &with_result)).ok(), Value::Null);
        node.assert_empty(version);
    }
}

#[test]
fn add_after_another_plugin_is_rejected() {
    let node = Node::new(&["10.244.1.0/24"]);
    let _agent = node.good_agent();
    let error = node.call("ADD", &Pod::new("c1"), &json!({"prevResult": {"cniVersion": "1.1.0"}}));
    assert!(error.code() == 7 && error.text().contains("first"), "{error:?}");
}
