//! Cluster DNS, as pods.

use crate::cluster::IpFamily;
use crate::toolchain::COREDNS_IMAGE;

/// Manifests of CoreDNS with its Service at 10.96.0.10.
pub(super) fn manifests(family: IpFamily) -> String {
    let policy = match family {
        IpFamily::V4 => "SingleStack",
        IpFamily::Dual => "PreferDualStack",
    };
    include_str!("../../assets/coredns.yaml").replace("@IMAGE@", COREDNS_IMAGE).replace("@FAMILIES@", policy)
}
