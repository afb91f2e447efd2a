//! The environment variables: the command and its arguments (CNI specification, "Parameters").

use std::path::PathBuf;

use towpath_core::model::{ParseError, PodId};
use towpath_local::Attachment;

use crate::error::CniError;

/// One command of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// Create a pod's interface.
    Add {
        /// The container and its interface.
        attachment: Attachment,
        /// The pod's network namespace.
        netns: PathBuf,
        /// The pod.
        pod: PodId,
        /// The pod's UID, if the runtime passes it.
        uid: Option<String>,
    },
    /// Remove it.
    Del {
        /// The container and its interface.
        attachment: Attachment,
        /// The pod's network namespace, if it still exists.
        netns: Option<PathBuf>,
    },
    /// Compare it with the result of ADD.
    Check {
        /// The container and its interface.
        attachment: Attachment,
        /// The pod's network namespace.
        netns: PathBuf,
    },
    /// Report whether pods can be added.
    Status,
    /// Remove everything of attachments that are not listed.
    Gc,
    /// List the supported versions.
    Version,
}

impl Call {
    /// # Errors
    /// [`CniError::MissingVariables`] with all missing variables; else the first with an invalid value.
    pub(crate) fn parse(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let mut vars = Variables { env, missing: Vec::new() };
        let command = vars.required("CNI_COMMAND");
        let call = match command.as_str() {
            "" => Err(CniError::MissingVariables(Vec::new())),
            "ADD" => vars.add(),
            "DEL" => {
                let attachment = vars.attachment();
                let netns = vars.optional("CNI_NETNS").map(PathBuf::from);
                attachment.map(|attachment| Self::Del { attachment, netns })
            }
            "CHECK" => {
                let netns = vars.required("CNI_NETNS").into();
                vars.attachment().map(|attachment| Self::Check { attachment, netns })
            }
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            _ => Err(CniError::UnknownCommand(command)),
        };
        // Missing variables are reported before invalid ones, all of them together.
        if vars.missing.is_empty() { call } else { Err(CniError::MissingVariables(vars.missing)) }
    }
}

struct Variables<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    missing: Vec<&'static str>,
}

impl Variables<'_> {
    fn optional(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    /// The value; empty, and noted as missing, if it is not set.
    fn required(&mut self, name: &'static str) -> String {
        self.optional(name).unwrap_or_else(|| {
            self.missing.push(name);
            String::new()
        })
    }

    fn attachment(&mut self) -> Result<Attachment, CniError> {
        let id = self.required("CNI_CONTAINERID");
        let ifname = self.required("CNI_IFNAME");
        Attachment::new(&id, &ifname).map_err(|source| {
            let name = if source.text == id { "CNI_CONTAINERID" } else { "CNI_IFNAME" };
            CniError::BadVariable { name, source }
        })
    }

    fn add(&mut self) -> Result<Call, CniError> {
        let netns = self.required("CNI_NETNS").into();
        let attachment = self.attachment()?;
        let args = self.optional("CNI_ARGS").unwrap_or_default();
        let pod = pod(&args).map_err(|source| CniError::BadVariable { name: "CNI_ARGS", source })?;
        Ok(Call::Add { attachment, netns, pod, uid: argument(&args, "K8S_POD_UID") })
    }
}

/// The pod in `CNI_ARGS`, as every Kubernetes runtime passes it: its policies are found by it, and its interface is named
/// after it.
fn pod(args: &str) -> Result<PodId, ParseError> {
    match (argument(args, "K8S_POD_NAMESPACE"), argument(args, "K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(PodId { namespace, name }),
        _ => Err(ParseError {
            text: args.to_owned(),
            expected: "a list with K8S_POD_NAMESPACE=… and K8S_POD_NAME=…, separated by semicolons: \
                       this network is for Kubernetes pods",
        }),
    }
}

/// A value in `CNI_ARGS`, at most as long as a Kubernetes name (253 characters).
fn argument(args: &str, key: &str) -> Option<String> {
    let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(k, v)| *k == key && !v.is_empty() && v.len() <= 253).map(|(_, v)| v.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[(&str, &str)] = &[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1"),
    ];

    /// Parses all variables, some of them with other values; an empty one counts as missing.
    fn parse(but: &[(&str, &str)]) -> Result<Call, CniError> {
        Call::parse(&|name| {
            let find = |list: &[(&str, &str)]| list.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            find(but).or_else(|| find(ALL))
        })
    }

    #[test]
    fn missing_variables_are_named_together() {
        let missing = |but: &[(&str, &str)]| match parse(but) {
            Err(error @ CniError::MissingVariables(_)) if error.code() == 4 => error.to_string(),
            other => panic!("{but:?}: {other:?}"),
        };
        let none = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")];
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(missing(&none).contains(name), "{name}");
        }
        assert!(missing(&[("CNI_COMMAND", "")]).contains("CNI_COMMAND"));
        assert!(missing(&[("CNI_COMMAND", "CHECK"), ("CNI_NETNS", "")]).contains("CNI_NETNS"));
        assert!(missing(&[("CNI_CONTAINERID", "/"), ("CNI_NETNS", "")]).contains("CNI_NETNS"), "before a wrong one");
    }

    #[test]
    fn invalid_variables_are_named() {
        for (but, name, why) in [
            (("CNI_CONTAINERID", "a/b"), "CNI_CONTAINERID", "no container id"),
            (("CNI_CONTAINERID", "-"), "CNI_CONTAINERID", "does not begin with a letter or digit"),
            (("CNI_IFNAME", "a234567890123456"), "CNI_IFNAME", "sixteen characters"),
            (("CNI_IFNAME", "."), "CNI_IFNAME", "reserved"),
            (("CNI_IFNAME", "a:b"), "CNI_IFNAME", "a colon"),
            (("CNI_ARGS", ""), "CNI_ARGS", "no pod"),
            (("CNI_ARGS", "K8S_POD_NAME=web-0"), "CNI_ARGS", "no namespace"),
            (("CNI_ARGS", "K8S_POD_NAMESPACE;K8S_POD_NAME"), "CNI_ARGS", "no values"),
            (("CNI_COMMAND", "add"), "CNI_COMMAND", "no command: they are in capitals"),
        ] {
            let error = parse(&[but]).unwrap_err();
            assert!(error.code() == 4 && error.to_string().contains(name), "{why}: {error}");
        }
    }

    #[test]
    fn a_command_needs_only_what_it_uses() {
        let attachment = Attachment::new("c1", "eth0").unwrap();
        let none = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_ARGS", "")];
        for (command, call) in [("STATUS", Call::Status), ("GC", Call::Gc), ("VERSION", Call::Version)] {
            let but = [&none[..], &[("CNI_COMMAND", command)]].concat();
            assert_eq!(parse(&but).unwrap(), call);
        }
        let del = parse(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", ""), ("CNI_ARGS", "")]).unwrap();
        assert_eq!(del, Call::Del { attachment: attachment.clone(), netns: None });
        let pod = PodId { namespace: "default".to_owned(), name: "web-0".to_owned() };
        assert_eq!(
            parse(&[]).unwrap(),
            Call::Add { attachment, netns: "/run/netns/x".into(), pod, uid: Some("1".to_owned()) }
        );
        let without = parse(&[("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0")]).unwrap();
        assert!(matches!(without, Call::Add { uid: None, .. }), "not every runtime passes it");
    }
}
