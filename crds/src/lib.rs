//! towpath-crds
