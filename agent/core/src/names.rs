//! Names of what is ours in the kernel. The agent, the CNI plugin and the command line agree on them through these functions.

use std::{fmt, sync::Arc};

use sha1::{Digest, Sha1};

use crate::model::{Family, ParseError, Vni};

/// Our one nft table, of the `inet` family. Nothing outside of it is ever read or written.
pub const TABLE: &str = "towpath";

/// The protocol number that marks a route as ours (`man ip-route`; not in the kernel's list of known routing daemons).
pub const ROUTE_PROTOCOL: u8 = 157;

/// The bit of a connection's mark (`ct mark`) that says: the policy denies it now, whatever it was when it began. No other
/// bit is touched. Kube-proxy, firewalld and Docker leave the marks of connections alone.
pub const REVOKED_MARK: u32 = 0x0040_0000;

/// What the host's end of every pod's veth is called, followed by eleven hexadecimal digits.
pub const VETH_PREFIX: &str = "tow";

/// The name of a network interface: 1 to 15 bytes, no `/` and no white space, not `.` or `..` (kernel: `dev_valid_name`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The longest name in bytes: IFNAMSIZ less its NUL.
    pub const MAX_LEN: usize = 15;

    /// # Errors
    /// If the kernel would refuse the name, or if it has a character that an nft script cannot quote.
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

    /// The host's end of a pod's veth: stable over restarts, the same in every component.
    #[must_use]
    pub fn of_pod(namespace: &str, pod: &str) -> Self {
        let digest = Sha1::digest(format!("{namespace}.{pod}"));
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        Self(format!("{VETH_PREFIX}{}", &hex[..11]))
    }

    /// The VXLAN device of a family: flannel's names, so that a node can change sides with its pods running.
    #[must_use]
    pub fn of_vxlan(family: Family, vni: Vni) -> Self {
        Self(match family {
            Family::V4 => format!("flannel.{vni}"),
            Family::V6 => format!("flannel-v6.{vni}").chars().take(Self::MAX_LEN).collect(),
        })
    }

    /// Whether it is the host's end of a pod's veth.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.0
            .strip_prefix(VETH_PREFIX)
            .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    }

    /// The name.
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

/// Defines a name of an nft object: letters, digits, `_`, `-` and `.`, beginning with a letter, up to 127 bytes
/// (NFT_NAME_MAXLEN is 256; the half leaves room for no surprise).
macro_rules! nft_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// If an nft script could not carry the name as it is.
            pub fn new(name: &str) -> Result<Self, ParseError> {
                let ok = name.len() <= 127
                    && name.starts_with(|c: char| c.is_ascii_alphabetic())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
                if ok { Ok(Self(name.into())) } else { Err(ParseError::new(name, "an nft name of letters, digits, _ - and ., beginning with a letter")) }
            }

            /// The name.
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
    /// The name of a chain of our table.
    ChainName
);
nft_name!(
    /// The name of a set or a verdict map of our table (they share one name space in the kernel).
    SetName
);

/// What `nft list` shows beside a chain, a set or a map: whose policies it belongs to, or what it holds. It never decides
/// anything, and no comparison looks at it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comment(Arc<str>);

impl Comment {
    /// The longest comment in bytes. nft takes 128 (`NFTNL_UDATA_COMMENT_MAXLEN`), its final zero included.
    pub const MAX_LEN: usize = 127;

    /// A comment of a fixed text, shortened to [`Comment::MAX_LEN`]; `"` becomes `'`, because nft cannot quote it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(shortened(&text.replace('"', "'"), Self::MAX_LEN).into())
    }

    /// `what` and as many of the items as there is room for: `ingress of default/web, default/db and 3 more`.
    #[must_use]
    pub fn list(what: &str, items: &[String]) -> Self {
        let all = items.join(", ");
        if what.len() + 1 + all.len() <= Self::MAX_LEN {
            return Self::new(&format!("{what} {all}"));
        }
        let tail = |left: usize| format!(" and {left} more");
        let mut text = format!("{what} {}", items.first().map_or("", String::as_str));
        let mut shown = 1;
        for item in items.iter().skip(1) {
            if text.len() + 2 + item.len() + tail(items.len()).len() > Self::MAX_LEN {
                break;
            }
            text = format!("{text}, {item}");
            shown += 1;
        }
        if items.len() <= shown {
            return Self::new(&text);
        }
        let tail = tail(items.len() - shown);
        Self::new(&format!("{}{tail}", shortened(&text, Self::MAX_LEN - tail.len())))
    }

    /// The text.
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

/// The text, or its beginning and an ellipsis, in at most `max` bytes.
fn shortened(text: &str, max: usize) -> String {
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
    fn an_interface_name_is_what_the_kernel_takes() {
        for (name, ok, why) in [
            ("eth0", true, "usual"),
            ("", false, "empty"),
            ("a234567890123456", false, "sixteen bytes"),
            ("a23456789012345", true, "fifteen bytes"),
            ("a/b", false, "slash"),
            ("a b", false, "white space"),
            ("..", false, "reserved in sysfs"),
            ("eth0*", false, "would be a pattern in nft"),
        ] {
            assert_eq!(IfName::new(name).is_ok(), ok, "{why}");
        }
    }

    #[test]
    fn a_pods_interface_has_a_stable_name_that_is_recognised() {
        let name = IfName::of_pod("default", "web-0");
        assert_eq!(name, IfName::of_pod("default", "web-0"), "stable");
        assert_ne!(name, IfName::of_pod("default", "web-1"));
        assert_eq!(name.as_str().len(), 14);
        assert!(name.is_pod() && IfName::new(name.as_str()).is_ok());
        assert!(!IfName::of_vxlan(Family::V4, Vni::new(1).unwrap()).is_pod());
        assert!(!IfName::new("tow0").unwrap().is_pod());
    }

    #[test]
    fn a_comment_fits_into_nft_and_says_how_much_it_leaves_out() {
        assert_eq!(Comment::new("pods of \"web\"").as_str(), "pods of 'web'", "nft cannot quote a quote");
        let items = |n: usize| (0..n).map(|n| format!("namespace-{n}/policy")).collect::<Vec<_>>();
        assert_eq!(
            Comment::list("ingress of", &items(2)).as_str(),
            "ingress of namespace-0/policy, namespace-1/policy"
        );
        for n in [6, 7, 8, 100, 10_000] {
            let comment = Comment::list("ingress of", &items(n));
            assert!(comment.as_str().len() <= Comment::MAX_LEN, "{comment}");
            let shown = comment.as_str().matches("/policy").count();
            if shown < n {
                assert!(comment.as_str().ends_with(&format!(" and {} more", n - shown)), "{comment}");
            }
        }
        let long = Comment::list("ingress of", &["a".repeat(63) + "/" + &"é".repeat(253), "b/c".to_owned()]);
        assert!(long.as_str().len() <= Comment::MAX_LEN && long.as_str().ends_with("... and 1 more"), "{long}");
    }

    #[test]
    fn a_vxlan_device_is_called_as_flannel_calls_it() {
        let vni = Vni::new(4096).unwrap();
        assert_eq!(IfName::of_vxlan(Family::V4, vni).as_str(), "flannel.4096");
        assert_eq!(IfName::of_vxlan(Family::V6, vni).as_str(), "flannel-v6.4096");
    }
}
