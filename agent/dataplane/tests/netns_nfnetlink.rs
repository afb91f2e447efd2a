//! nfnetlink requests to a real kernel, with nf_tables as the subsystem.

mod support;

use std::time::Duration;

use nix::errno::Errno;
use support::{enter_new_namespace, sh};
use towpath_dataplane::nfnetlink::{MessageType, NfnetlinkMessage, NfnetlinkRequest, NfnetlinkSocket, Received};

/// `NFT_MSG_GETTABLE`, `NFT_MSG_GETCHAIN`, `NFT_MSG_NEWTABLE` and `NFT_MSG_DELTABLE` of `NFNL_SUBSYS_NFTABLES`.
const fn nf_tables(number: u8) -> MessageType {
    MessageType { subsystem: 10, number }
}
const GET_TABLE: MessageType = nf_tables(1);
const GET_CHAIN: MessageType = nf_tables(4);
const NEW_TABLE: MessageType = nf_tables(0);

fn name(message: NfnetlinkMessage<'_>) -> Option<String> {
    message.attributes.find(1)?.text().map(str::to_owned)
}

fn get(kind: MessageType, table: &str) -> NfnetlinkRequest {
    let mut request = NfnetlinkRequest::new(kind, 1);
    request.body.text(1, table);
    request
}

#[test]
fn a_dump_returns_all_objects_and_a_get_returns_one() {
    enter_new_namespace();
    let mut socket = NfnetlinkSocket::open().unwrap();
    assert_eq!(socket.dump(&NfnetlinkRequest::new(GET_TABLE, 1), name).unwrap(), Vec::<String>::new());
    let chains: String = (0..2000).map(|n| format!("add chain inet a chain-with-a-long-name-{n}\n")).collect();
    sh(&format!("nft -f - <<'E'\nadd table inet a\nadd table inet b\nadd table ip c\n{chains}\nE"));
    assert_eq!(socket.dump(&NfnetlinkRequest::new(GET_TABLE, 1), name).unwrap(), ["a", "b"], "of one family");
    assert_eq!(socket.dump(&NfnetlinkRequest::new(GET_CHAIN, 1), name).unwrap().len(), 2000, "in many datagrams");
    assert_eq!(socket.get(&get(GET_TABLE, "b"), name).unwrap(), Some("b".to_owned()));
}

#[test]
fn a_rejected_request_has_an_errno_and_the_others_are_executed() {
    enter_new_namespace();
    let mut socket = NfnetlinkSocket::open().unwrap();
    sh("nft add table inet a");
    let error = socket.get(&get(GET_TABLE, "absent"), name).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT));
    // More requests than one send window.
    let requests: Vec<_> = (0..300).map(|n| get(GET_TABLE, if n % 100 == 0 { "absent" } else { "a" })).collect();
    let results = socket.execute_all(&requests);
    let rejected: Vec<_> = (0..results.len()).filter(|n| results[*n].is_err()).collect();
    assert_eq!((results.len(), rejected), (300, vec![0, 100, 200]));
}

#[test]
fn notifications_are_received_with_a_time_limit() {
    enter_new_namespace();
    let mut socket = NfnetlinkSocket::open().unwrap();
    // NFNLGRP_NFTABLES.
    socket.join(7).unwrap();
    let short = Some(Duration::from_millis(10));
    assert_eq!(socket.receive(short, |_| panic!("no notification is expected")).unwrap(), Received::Nothing);
    sh("nft add table inet a");
    let mut received = Vec::new();
    let long = Some(Duration::from_secs(10));
    assert_eq!(
        socket.receive(long, |message| received.push((message.kind, name(message)))).unwrap(),
        Received::Messages
    );
    assert_eq!(received[0], (NEW_TABLE, Some("a".to_owned())));
}
