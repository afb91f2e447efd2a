//! Objects of the API server without the fields that the index does not read: decoding skips them, so that they are never in
//! memory. Of a pod's ten kilobytes some hundred bytes are kept.
//!
//! Decoding always succeeds, because a failure would cost the whole list or the watch. A malformed object has an error
//! instead, and what could be decoded of its name. `decisions/0010-trimmed-watch-types.md` says why kube's types do not do.

use std::{borrow::Cow, fmt};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Which fields of a value are kept.
#[derive(Debug)]
pub(super) enum KeptFields {
    /// The whole value.
    All,
    /// Of an object, these; of a list, these of each item; of any other value, all.
    These(&'static FieldList),
}

type FieldList = [(&'static str, KeptFields)];

/// A watched kind, and the fields that [`towpath_index`] reads.
pub(super) trait Watched: Resource<DynamicType = ()> + DeserializeOwned + Default {
    /// The fields. A watch needs `metadata` with the name and the `resourceVersion`.
    const KEPT: KeptFields;
}

const ALL: KeptFields = KeptFields::All;

impl Watched for Node {
    const KEPT: KeptFields = KeptFields::These(&[
        (
            "metadata",
            KeptFields::These(&[
                ("name", ALL),
                ("uid", ALL),
                ("creationTimestamp", ALL),
                ("annotations", ALL),
                ("resourceVersion", ALL),
            ]),
        ),
        ("spec", KeptFields::These(&[("podCIDR", ALL), ("podCIDRs", ALL)])),
        (
            "status",
            KeptFields::These(&[
                ("addresses", ALL),
                ("conditions", KeptFields::These(&[("type", ALL), ("status", ALL), ("reason", ALL)])),
            ]),
        ),
    ]);
}

impl Watched for Namespace {
    const KEPT: KeptFields = KeptFields::These(&[(
        "metadata",
        KeptFields::These(&[("name", ALL), ("labels", ALL), ("resourceVersion", ALL)]),
    )]);
}

impl Watched for NetworkPolicy {
    const KEPT: KeptFields = KeptFields::These(&[
        ("metadata", KeptFields::These(&[("namespace", ALL), ("name", ALL), ("resourceVersion", ALL)])),
        ("spec", ALL),
    ]);
}

/// Of containers only the ports.
const CONTAINERS: KeptFields =
    KeptFields::These(&[("ports", KeptFields::These(&[("name", ALL), ("containerPort", ALL), ("protocol", ALL)]))]);

impl Watched for Pod {
    const KEPT: KeptFields = KeptFields::These(&[
        (
            "metadata",
            KeptFields::These(&[
                ("namespace", ALL),
                ("name", ALL),
                ("uid", ALL),
                ("labels", ALL),
                ("annotations", KeptFields::These(&[("kubernetes.io/config.mirror", ALL)])),
                ("resourceVersion", ALL),
            ]),
        ),
        (
            "spec",
            KeptFields::These(&[
                ("nodeName", ALL),
                ("hostNetwork", ALL),
                ("containers", CONTAINERS),
                ("initContainers", CONTAINERS),
            ]),
        ),
        ("status", KeptFields::These(&[("phase", ALL), ("podIP", ALL), ("podIPs", ALL)])),
    ]);
}

/// An object of which only the kept fields are decoded.
#[derive(Debug, Clone)]
pub(super) struct Trimmed<K> {
    /// The object; only its name if there is an error.
    pub(super) object: K,
    /// Why it could not be decoded.
    pub(super) error: Option<String>,
}

impl<'de, K: Watched> Deserialize<'de> for Trimmed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = K::KEPT.deserialize(deserializer)?;
        Ok(match K::deserialize(&value) {
            Ok(object) => Self { object, error: None },
            Err(error) => Self { object: named(&value), error: Some(error.to_string()) },
        })
    }
}

/// An object with what can be decoded of its name and version.
fn named<K: Watched>(value: &Value) -> K {
    let text = |field| value["metadata"][field].as_str().map(str::to_owned);
    let mut object = K::default();
    *object.meta_mut() = ObjectMeta {
        namespace: text("namespace"),
        name: text("name"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    };
    object
}

impl<K: Watched> Resource for Trimmed<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.object.meta_mut()
    }
}

impl<'de> DeserializeSeed<'de> for &KeptFields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            KeptFields::All => Value::deserialize(deserializer),
            KeptFields::These(fields) => deserializer.deserialize_any(FieldFilter { kept: self, fields }),
        }
    }
}

/// Decodes a value of which some fields are kept.
struct FieldFilter<'a> {
    kept: &'a KeptFields,
    fields: &'a FieldList,
}

impl<'de> Visitor<'de> for FieldFilter<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(field) = map.next_key_seed(FieldLookup(self.fields))? {
            match field {
                Some((name, kept)) => {
                    object.insert((*name).to_owned(), map.next_value_seed(kept)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(object.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self.kept)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Finds a kept field by its name.
struct FieldLookup<'a>(&'a FieldList);

impl<'de, 'a> DeserializeSeed<'de> for FieldLookup<'a> {
    type Value = Option<&'a (&'static str, KeptFields)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, 'a> Visitor<'de> for FieldLookup<'a> {
    type Value = Option<&'a (&'static str, KeptFields)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(name, _)| *name == text))
    }
}

#[cfg(test)]
mod tests;
