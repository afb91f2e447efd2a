//! Objects as the API server sends them, less what nobody here reads: that is passed over while an object is decoded, and
//! is never in memory. Of a pod's ten kilobytes some hundred bytes are left.
//!
//! Whatever an object looks like, decoding it succeeds, because a failure would cost the whole list or the watch. One
//! that has not the form of its kind has an error instead, and what could be read of its name.

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

/// What of a value is kept.
#[derive(Debug)]
pub(super) enum Keep {
    /// All of it.
    All,
    /// Of an object, these fields; of a list, these of each of its items; anything else as it is.
    Fields(&'static Fields),
}

type Fields = [(&'static str, Keep)];

/// A kind that is watched, and what of it is read by [`towpath_index`].
pub(super) trait Watched: Resource<DynamicType = ()> + DeserializeOwned + Default {
    /// Its fields. `metadata` has the name and the `resourceVersion`, by which a watch goes on.
    const KEEP: Keep;
}

const ALL: Keep = Keep::All;

impl Watched for Node {
    const KEEP: Keep = Keep::Fields(&[
        (
            "metadata",
            Keep::Fields(&[
                ("name", ALL),
                ("uid", ALL),
                ("creationTimestamp", ALL),
                ("annotations", ALL),
                ("resourceVersion", ALL),
            ]),
        ),
        ("spec", Keep::Fields(&[("podCIDR", ALL), ("podCIDRs", ALL)])),
        (
            "status",
            Keep::Fields(&[
                ("addresses", ALL),
                ("conditions", Keep::Fields(&[("type", ALL), ("status", ALL), ("reason", ALL)])),
            ]),
        ),
    ]);
}

impl Watched for Namespace {
    const KEEP: Keep =
        Keep::Fields(&[("metadata", Keep::Fields(&[("name", ALL), ("labels", ALL), ("resourceVersion", ALL)]))]);
}

impl Watched for NetworkPolicy {
    const KEEP: Keep = Keep::Fields(&[
        ("metadata", Keep::Fields(&[("namespace", ALL), ("name", ALL), ("resourceVersion", ALL)])),
        ("spec", ALL),
    ]);
}

/// Of a container its ports.
const CONTAINERS: Keep =
    Keep::Fields(&[("ports", Keep::Fields(&[("name", ALL), ("containerPort", ALL), ("protocol", ALL)]))]);

impl Watched for Pod {
    const KEEP: Keep = Keep::Fields(&[
        (
            "metadata",
            Keep::Fields(&[
                ("namespace", ALL),
                ("name", ALL),
                ("uid", ALL),
                ("labels", ALL),
                ("annotations", Keep::Fields(&[("kubernetes.io/config.mirror", ALL)])),
                ("resourceVersion", ALL),
            ]),
        ),
        (
            "spec",
            Keep::Fields(&[
                ("nodeName", ALL),
                ("hostNetwork", ALL),
                ("containers", CONTAINERS),
                ("initContainers", CONTAINERS),
            ]),
        ),
        ("status", Keep::Fields(&[("phase", ALL), ("podIP", ALL), ("podIPs", ALL)])),
    ]);
}

/// An object of which only what is read was decoded.
#[derive(Debug, Clone)]
pub(super) struct Trimmed<K> {
    /// The object; with nothing but its name if there is an error.
    pub(super) object: K,
    /// Why it has not the form of its kind.
    pub(super) error: Option<String>,
}

impl<'de, K: Watched> Deserialize<'de> for Trimmed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = K::KEEP.deserialize(deserializer)?;
        Ok(match K::deserialize(&value) {
            Ok(object) => Self { object, error: None },
            Err(error) => Self { object: named(&value), error: Some(error.to_string()) },
        })
    }
}

/// An object with what can be read of its name and version.
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

impl<'de> DeserializeSeed<'de> for &Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Keep::All => Value::deserialize(deserializer),
            Keep::Fields(fields) => deserializer.deserialize_any(Sieve { keep: self, fields }),
        }
    }
}

/// Reads a value of which some fields are kept.
struct Sieve<'a> {
    keep: &'a Keep,
    fields: &'a Fields,
}

impl<'de> Visitor<'de> for Sieve<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(field) = map.next_key_seed(Known(self.fields))? {
            match field {
                Some((name, keep)) => _ = object.insert((*name).to_owned(), map.next_value_seed(keep)?),
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(object.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self.keep)? {
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

/// Finds a field by its name.
struct Known<'a>(&'a Fields);

impl<'de, 'a> DeserializeSeed<'de> for Known<'a> {
    type Value = Option<&'a (&'static str, Keep)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, 'a> Visitor<'de> for Known<'a> {
    type Value = Option<&'a (&'static str, Keep)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(name, _)| *name == text))
    }
}

#[cfg(test)]
mod tests;
