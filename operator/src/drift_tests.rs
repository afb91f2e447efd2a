use serde_json::json;

use super::*;

fn holds(want: &Value, have: &Value) -> bool {
    differences(want, have).is_empty()
}

#[test]
fn what_the_api_server_adds_is_no_difference_and_what_it_changes_is() {
    let want = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}], "hostNetwork": true}});
    let image = ".spec.containers[0].image";
    let cases = [
        (
            json!({"spec": {"containers": [{"name": "a", "image": "i:1", "tty": false}], "hostNetwork": true}}),
            "",
            "defaults",
        ),
        (json!({"spec": {"containers": [{"name": "a", "image": "i:2"}], "hostNetwork": true}}), image, "another image"),
        (json!({"spec": {"containers": [{"name": "a", "image": "i:1"}]}}), ".spec.hostNetwork", "a field is gone"),
        (
            json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b"}], "hostNetwork": true}}),
            ".spec.containers",
            "a container too many",
        ),
    ];
    for (have, path, why) in cases {
        assert_eq!(differences(&want, &have).join(" "), path, "{why}");
    }
}

#[test]
fn an_entry_more_in_an_atomic_map_is_another_value() {
    let want = json!({"nodeSelector": {"kubernetes.io/os": "linux"}});
    assert!(!holds(&want, &json!({"nodeSelector": {"kubernetes.io/os": "linux", "no/such": "x"}})));
    assert!(holds(&want, &json!({"nodeSelector": {"kubernetes.io/os": "linux"}, "more": {}})));
}

#[test]
fn quantities_are_compared_by_value() {
    for (want, have, same) in [
        ("0.5", "500m", true),
        ("64Mi", "67108864", true),
        ("1024Mi", "1Gi", true),
        ("100m", "200m", false),
        ("1e3", "1k", true),
        ("1M", "1Mi", false),
    ] {
        let amounts = |text: &str| json!({"requests": {"cpu": text}});
        assert_eq!(holds(&amounts(want), &amounts(have)), same, "{want} and {have}");
    }
}

fn owners(manager: &str, operation: &str, fields: &Value) -> ManagedFieldsEntry {
    serde_json::from_value(
        json!({"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}),
    )
    .unwrap()
}

#[test]
fn what_others_add_to_the_spec_is_found_by_its_owner() {
    let want = json!({"spec": {"template": {
        "metadata": {"annotations": {"ours": "1"}},
        "spec": {
            "containers": [{"name": "agent", "env": [{"name": "A", "value": "1"}]}]}}}});
    let have = json!({"spec": {"template": {
        "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}},
        "spec": {
            "overhead": {"example.org/no~such": "x"},
            "containers": [
                {"name": "agent", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "C"}], "tty": true},
                {"name": "extra"}]}}}});
    let fields = json!({"f:spec": {"f:template": {
        "f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/restartedAt": {}}},
        "f:spec": {
            "f:overhead": {"f:example.org/no~such": {}},
            "f:containers": {
                "k:{\"name\":\"agent\"}": {"f:env": {"k:{\"name\":\"B\"}": {".": {}, "f:name": {}}, "k:{\"name\":\"C\"}": {".": {}}}, "f:tty": {}},
                "k:{\"name\":\"extra\"}": {".": {}, "f:name": {}}}}}}});
    let entries = [owners("kubectl-edit", "Update", &fields)];
    assert_eq!(
        unmanaged_fields(&want, &have, &entries, "us"),
        [
            "/spec/template/spec/overhead",
            "/spec/template/spec/containers/1",
            "/spec/template/spec/containers/0/tty",
            "/spec/template/spec/containers/0/env/2",
            "/spec/template/spec/containers/0/env/1",
        ],
        "the restart annotation is allowed; later positions come first"
    );
    assert!(
        unmanaged_fields(&want, &have, &[owners("us", "Apply", &fields)], "us").is_empty(),
        "the operator's own fields are managed"
    );
}

#[test]
fn the_status_belongs_to_others() {
    let mut entry = owners("kube-controller-manager", "Update", &json!({"f:spec": {"f:x": {}}}));
    entry.subresource = Some("status".to_owned());
    assert!(unmanaged_fields(&json!({"spec": {}}), &json!({"spec": {"x": 1}}), &[entry], "us").is_empty());
}
