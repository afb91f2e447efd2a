#![doc = include_str!("../README.md")]

pub mod conntrack;
pub mod export;
pub mod foreign;
pub mod net;
pub mod nflog;
pub mod nfnetlink;
pub mod nft;
