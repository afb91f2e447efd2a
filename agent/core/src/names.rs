//! Names and numbers of our kernel objects. The agent, the CNI plugin and the command line derive them from here, so that
//! they agree.

use std::{fmt, sync::Arc};

use sha1::{Digest, Sha1};

use crate::model::{Family, ParseError, Vni};

/// Our nft table, of family `inet`. The agent changes no other table.
pub const TABLE: &str = "towpath";

/// Protocol number of our routes (`rtm_protocol`). linux/rtnetlink.h assigns it to no other program.
pub const ROUTE_PROTOCOL: u8 = 157;

/// Bit of the connection mark (`ct mark`) of a revoked connection: policy allowed it when it was established and denies it
/// now. We change no other bit. kube-proxy, firewalld and Docker do not use connection marks.
pub const REVOKED_MARK: u32 = 0x0040_0000;

/// Name prefix of the host side of every pod's veth. Eleven hexadecimal digits follow.
pub const VETH_PREFIX: &str = "tow";

/// Name of a network interface: 1 to 15 bytes without `/`, `:` and white space, not `.` or `..` (kernel:
/// `dev_valid_name`), and without characters that an nft script cannot quote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// Maximum length in bytes: IFNAMSIZ minus the final NUL.
    pub const MAX_LEN: usize = 15;

    /// Validates a name.
    ///
    /// # Errors
    /// If the kernel would reject the name, or if it contains a character that an nft script cannot quote.
    pub fn new(name: &str) -> Result<Self, ParseError> {
        let ok = (1..=Self::MAX_LEN).contains(&name.len())
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'"' | b'\\' | b'*'));
        if ok {
            Ok(Self(name.to_owned()))
        } else {
            Err(ParseError::new(name, "an interface name of 1 to 15 printable characters without / : \" \\ *"))
        }
    }

    /// Host side of a pod's veth: a hash of namespace and name, so it is stable across restarts and components.
    #[must_use]
    pub fn of_pod(namespace: &str, pod: &str) -> Self {
        let digest = Sha1::digest(format!("{namespace}.{pod}"));
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        Self(format!("{VETH_PREFIX}{}", &hex[..11]))
    }

    /// VXLAN device of a family. The names are flannel's, so that a node can migrate while its pods run.
    #[must_use]
    pub fn of_vxlan(family: Family, vni: Vni) -> Self {
        Self(match family {
            Family::V4 => format!("flannel.{vni}"),
            Family::V6 => format!("flannel-v6.{vni}").chars().take(Self::MAX_LEN).collect(),
        })
    }

    /// Whether this is the name of the host side of a pod's veth.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.0
            .strip_prefix(VETH_PREFIX)
            .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    }

    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Defines a name of an nft object: letters, digits, `_`, `-` and `.`, beginning with a letter, at most 127 bytes (the
/// kernel allows NFT_NAME_MAXLEN, 256).
macro_rules! nft_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Validates a name.
            ///
            /// # Errors
            /// If an nft script would have to quote the name, or if it is longer than 127 bytes.
            pub fn new(name: &str) -> Result<Self, ParseError> {
                let ok = name.len() <= 127
                    && name.starts_with(|c: char| c.is_ascii_alphabetic())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
                if ok { Ok(Self(name.into())) } else { Err(ParseError::new(name, "an nft name of letters, digits, _ - and ., beginning with a letter")) }
            }

            /// The name as a string.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

nft_name!(
    /// Name of a chain in our table.
    ChainName
);
nft_name!(
    /// Name of a set or verdict map in our table. Sets and maps share one name space in the kernel.
    SetName
);

/// Comment of a chain, set or map, shown by `nft list`: the policies it belongs to or its contents. Never compared with
/// the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comment(Arc<str>);

impl Comment {
    /// Maximum length in bytes. nft allows 128 (`NFTNL_UDATA_COMMENT_MAXLEN`) with the final NUL.
    pub const MAX_LEN: usize = 127;

    /// Creates a comment, truncated to [`Comment::MAX_LEN`]. Replaces `"` with `'`, because nft cannot quote it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(truncate(&text.replace('"', "'"), Self::MAX_LEN).into())
    }

    /// Creates a comment of `what` and as many of the `count` items as fit: `ingress of default/web, default/db and 3 more`.
    /// Formats only those: a chain can belong to a thousand policies.
    #[must_use]
    pub fn list<T: fmt::Display>(what: &str, count: usize, items: impl IntoIterator<Item = T>) -> Self {
        let omitted = |left: usize| if left == 0 { String::new() } else { format!(" and {left} more") };
        let mut text = what.to_owned();
        let mut shown = 0;
        for item in items {
            let separator = if shown == 0 { " " } else { ", " };
            let longer = format!("{text}{separator}{item}");
            if shown > 0 && longer.len() + omitted(count.saturating_sub(shown + 1)).len() > Self::MAX_LEN {
                break;
            }
            text = longer;
            shown += 1;
        }
        let tail = omitted(count.saturating_sub(shown));
        Self::new(&format!("{}{tail}", truncate(&text, Self::MAX_LEN - tail.len())))
    }

    /// The comment as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Truncates a text to `max` bytes, ellipsis included.
fn truncate(text: &str, max: usize) -> String {
    const ELLIPSIS: &str = "...";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max - ELLIPSIS.len()).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    format!("{}{ELLIPSIS}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_is_valid_for_the_kernel_and_for_nft() {
        for (name, ok, why) in [
            ("eth0", true, "valid"),
            ("", false, "empty"),
            ("a234567890123456", false, "sixteen bytes"),
            ("a23456789012345", true, "fifteen bytes"),
            ("a/b", false, "slash"),
            ("a b", false, "white space"),
            ("..", false, "reserved in sysfs"),
            ("eth0*", false, "a wildcard in nft"),
        ] {
            assert_eq!(IfName::new(name).is_ok(), ok, "{why}");
        }
    }

    #[test]
    fn the_interface_name_of_a_pod_is_stable_and_recognised() {
        let name = IfName::of_pod("default", "web-0");
        assert_eq!(name, IfName::of_pod("default", "web-0"), "stable");
        assert_ne!(name, IfName::of_pod("default", "web-1"));
        assert_eq!(name.as_str().len(), 14);
        assert!(name.is_pod() && IfName::new(name.as_str()).is_ok());
        assert!(!IfName::of_vxlan(Family::V4, Vni::new(1).unwrap()).is_pod());
        assert!(!IfName::new("tow0").unwrap().is_pod());
    }

    #[test]
    fn a_comment_is_truncated_to_the_maximum_length_and_counts_omitted_items() {
        assert_eq!(Comment::new("pods of \"web\"").as_str(), "pods of 'web'", "nft cannot escape a quote");
        let items = |n: usize| (0..n).map(|n| format!("namespace-{n}/policy")).collect::<Vec<_>>();
        assert_eq!(
            Comment::list("ingress of", 2, items(2)).as_str(),
            "ingress of namespace-0/policy, namespace-1/policy"
        );
        for n in [6, 7, 8, 100, 10_000] {
            let comment = Comment::list("ingress of", n, items(n));
            assert!(comment.as_str().len() <= Comment::MAX_LEN, "{comment}");
            let shown = comment.as_str().matches("/policy").count();
            if shown < n {
                assert!(comment.as_str().ends_with(&format!(" and {} more", n - shown)), "{comment}");
            }
        }
        let long = Comment::list("ingress of", 2, ["a".repeat(63) + "/" + &"é".repeat(253), "b/c".to_owned()]);
        assert!(long.as_str().len() <= Comment::MAX_LEN && long.as_str().ends_with("... and 1 more"), "{long}");
    }

    #[test]
    fn a_vxlan_device_has_flannels_name() {
        let vni = Vni::new(4096).unwrap();
        assert_eq!(IfName::of_vxlan(Family::V4, vni).as_str(), "flannel.4096");
        assert_eq!(IfName::of_vxlan(Family::V6, vni).as_str(), "flannel-v6.4096");
    }
}
