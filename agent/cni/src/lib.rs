//! towpath-cni
