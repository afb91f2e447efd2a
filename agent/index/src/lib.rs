//! towpath-index
