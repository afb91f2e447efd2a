//! towpath-agent
