//! The pods that a policy's podSelector selects.

use crate::scenario::{Scenario, run_scenarios, scenario};

/// Labels: `web` has app=web, tier=front; `db` has app=db, tier=back; `bare` has none.
const SUBJECTS: &[Scenario<'_>] = &[
    scenario(
        "one label",
        "matchLabels wants the value",
        "shop {podSelector: {matchLabels: {tier: back}}}",
        "client > web,bare tcp 80",
        "client > db tcp 80",
    ),
    scenario(
        "two labels",
        "matchLabels are ANDed",
        "shop {podSelector: {matchLabels: {app: web, tier: front}}}",
        "client > db,bare tcp 80",
        "client > web tcp 80",
    ),
    scenario(
        "two labels, one with another value",
        "all of matchLabels must hold",
        "shop {podSelector: {matchLabels: {app: web, tier: back}}}",
        "client > web,db,bare tcp 80",
        "",
    ),
    scenario(
        "a label that no pod has",
        "a policy that selects no pod isolates no pod",
        "shop {podSelector: {matchLabels: {app: none}}, policyTypes: [Ingress, Egress]}",
        "client > web,db,bare tcp 80; web > client tcp 80",
        "",
    ),
    scenario(
        "In one value",
        "In holds for that value, and not without the label",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: In, values: [front]}]}}",
        "client > db,bare tcp 80",
        "client > web tcp 80",
    ),
    scenario(
        "In two values",
        "In holds for any of them",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: In, values: [front, back]}]}}",
        "client > bare tcp 80",
        "client > web,db tcp 80",
    ),
    scenario(
        "NotIn",
        "NotIn holds for other values, and where the label is absent",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}",
        "client > web tcp 80",
        "client > db,bare tcp 80",
    ),
    scenario(
        "NotIn all values that there are",
        "only pods without the label are selected",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front, back]}]}}",
        "client > web,db tcp 80",
        "client > bare tcp 80",
    ),
    scenario(
        "Exists",
        "whatever the value",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}",
        "client > bare tcp 80",
        "client > web,db tcp 80",
    ),
    scenario(
        "DoesNotExist",
        "only without the label",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
        "client > web,db tcp 80",
        "client > bare tcp 80",
    ),
    scenario(
        "a label and an expression",
        "matchLabels and matchExpressions are ANDed",
        "shop {podSelector: {matchLabels: {app: db}, matchExpressions: [{key: tier, operator: In, values: [front]}]}}",
        "client > web,db,bare tcp 80",
        "",
    ),
    scenario(
        "a label and an expression that both hold",
        "matchLabels and matchExpressions are ANDed",
        "shop {podSelector: {matchLabels: {app: db}, matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}",
        "client > web,bare tcp 80",
        "client > db tcp 80",
    ),
    scenario(
        "two expressions on one label",
        "expressions are ANDed with each other",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: Exists},
            {key: tier, operator: NotIn, values: [back]}]}}",
        "client > db,bare tcp 80",
        "client > web tcp 80",
    ),
    scenario(
        "expressions that exclude each other",
        "no pod is selected",
        "shop {podSelector: {matchExpressions: [{key: tier, operator: Exists}, {key: tier, operator: DoesNotExist}]}}",
        "client > web,db,bare tcp 80",
        "",
    ),
    scenario(
        "an operator that does not exist",
        "an invalid selector isolates the pods that the rest selects, and allows nothing",
        "shop {podSelector: {matchLabels: {tier: front}, matchExpressions: [{key: app, operator: Near, values: [a]}]},
            ingress: [{}]}",
        "client > db,bare tcp 80",
        "client > web tcp 80",
    ),
    scenario(
        "In without values",
        "an invalid expression isolates, it does not allow",
        "shop {podSelector: {matchExpressions: [{key: app, operator: In}]}, ingress: [{}]}",
        "web > client tcp 80",
        "client > web,db,bare tcp 80",
    ),
];

#[test]
fn a_policy_selects_the_pods_of_its_namespace_that_match_its_pod_selector() {
    run_scenarios(SUBJECTS.iter().copied());
}
