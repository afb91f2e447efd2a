//! The admission policy that limits each agent to the objects of its own node, which RBAC cannot express.
//!
//! The node's name comes from the token: tokens of pods contain it since Kubernetes 1.30 (KEP-4193). A token without it is
//! denied.

use serde_json::{Value, json};
use towpath_crds::names;

use super::metadata;

const NAME: &str = "towpath-agent-own-node";
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

pub(super) fn objects() -> [Value; 2] {
    let agent = format!("system:serviceaccount:{}:{}", names::NAMESPACE, names::AGENT);
    let api = "admissionregistration.k8s.io/v1";
    [
        json!({
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": metadata(NAME, None),
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": { "resourceRules": [
                    {
                        "apiGroups": [names::GROUP],
                        "apiVersions": [names::VERSION],
                        "resources": ["networknodes", "networknodes/status"],
                        "operations": ["CREATE", "UPDATE", "DELETE"],
                        "scope": "*",
                    },
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["nodes/status"],
                        "operations": ["UPDATE"],
                        "scope": "*",
                    },
                ] },
                "matchConditions": [
                    { "name": "by-an-agent", "expression": format!("request.userInfo.username == '{agent}'") },
                ],
                "variables": [
                    {
                        "name": "target",
                        "expression": "request.operation == 'DELETE' ? oldObject.metadata.name : object.metadata.name",
                    },
                    {
                        "name": "node",
                        "expression": format!(
                            "'{NODE_CLAIM}' in request.userInfo.extra ? request.userInfo.extra['{NODE_CLAIM}'][0] : ''"
                        ),
                    },
                ],
                "validations": [{
                    "expression": "variables.node == variables.target",
                    "messageExpression": "'an agent may only write objects of its own node: the token belongs to node \"' + variables.node \
                                          + '\", the object belongs to \"' + variables.target + '\"'",
                    "reason": "Forbidden",
                }],
            },
        }),
        json!({
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": metadata(NAME, None),
            "spec": { "policyName": NAME, "validationActions": ["Deny"] },
        }),
    ]
}
