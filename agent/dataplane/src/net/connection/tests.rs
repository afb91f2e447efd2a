//! What the kernel does rarely is done by another socket, over the protocol that is there for users
//! (`NETLINK_USERSOCK`); what it does always is asked of the kernel. No test needs root.

use std::{
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{DoneMessage, NLM_F_MULTIPART};
use netlink_packet_route::{
    AddressFamily,
    address::AddressMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_USERSOCK};
use nix::{
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    },
    unistd::gettid,
};
use towpath_core::names::IfName;
use towpath_podlink::route::{message::get_link, parse};

use super::*;

const ENOUGH: Duration = Duration::from_secs(5);

/// A socket that plays the kernel.
struct FakeKernel(Socket, SocketAddr);

impl FakeKernel {
    /// Its port is the calling thread's number, which no other test has while this one runs.
    fn new() -> Self {
        let mut socket = Socket::new(NETLINK_USERSOCK).unwrap();
        let address = SocketAddr::new(gettid().as_raw().cast_unsigned(), 0);
        socket.bind(&address).unwrap();
        // A test that fails ends, instead of waiting for a request that does not come.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ENOUGH.as_secs().cast_signed())).unwrap();
        Self(socket, address)
    }

    fn connect(&self, time_limit: Duration) -> RouteConnection {
        RouteConnection::open_to(Peer { protocol: NETLINK_USERSOCK, address: self.1 }, time_limit).unwrap()
    }

    /// Waits for a request and gives it with its sender.
    fn receive(&self) -> (Message, SocketAddr) {
        let (bytes, from) = self.0.recv_from_full().unwrap();
        (Message::deserialize(&bytes).unwrap(), from)
    }

    fn answer(
        &self,
        (request, from): &(Message, SocketAddr),
        payload: NetlinkPayload<RouteNetlinkMessage>,
        flags: u16,
    ) {
        let mut answer = Message::new(request.header, payload);
        answer.header.flags = flags;
        answer.finalize();
        let mut bytes = vec![0; answer.buffer_len()];
        answer.serialize(&mut bytes);
        self.0.send_to(&bytes, from, 0).unwrap();
    }

    /// Answers one dump with one link.
    fn dump(&self, name: &str, flags: u16) {
        let request = self.receive();
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.answer(&request, RouteNetlinkMessage::NewLink(link).into(), NLM_F_MULTIPART | flags);
        let mut end = DoneMessage::default();
        end.code = 0;
        self.answer(&request, NetlinkPayload::Done(end), NLM_F_MULTIPART | flags);
    }
}

fn links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

fn name(message: &RouteNetlinkMessage) -> Option<String> {
    parse::new_link(message).map(|(_, link)| link.name.to_string())
}

#[test]
fn an_interrupted_dump_is_repeated_and_leaves_nothing_of_itself() {
    let kernel = FakeKernel::new();
    let mut connection = kernel.connect(ENOUGH);
    thread::scope(|scope| {
        scope.spawn(|| {
            kernel.dump("half", NLM_F_DUMP_INTR);
            kernel.dump("whole", 0);
        });
        assert_eq!(connection.dump(&links(), name).unwrap(), ["whole"]);
        scope.spawn(|| (0..DUMP_ATTEMPTS).for_each(|_| kernel.dump("half", NLM_F_DUMP_INTR)));
        let error = connection.dump(&links(), name).unwrap_err();
        assert!(matches!(error, NetlinkError::DumpInterrupted), "{error}");
    });
}

#[test]
fn a_dump_that_ends_in_an_error_is_none() {
    let kernel = FakeKernel::new();
    let mut connection = kernel.connect(ENOUGH);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut end = DoneMessage::default();
            end.code = -(Errno::EMSGSIZE as i32);
            kernel.answer(&kernel.receive(), NetlinkPayload::Done(end), NLM_F_MULTIPART);
        });
        assert_eq!(connection.dump(&links(), name).unwrap_err().errno(), Some(Errno::EMSGSIZE));
    });
}

#[test]
fn a_request_without_an_answer_times_out_and_its_late_answer_meets_no_other_request() {
    let kernel = FakeKernel::new();
    let limit = Duration::from_millis(50);
    let mut connection = kernel.connect(limit);
    let start = Instant::now();
    let error = connection.dump(&links(), name).unwrap_err();
    assert!(matches!(error, NetlinkError::Timeout), "{error}");
    assert!(start.elapsed() >= limit);
    let results = connection.execute_all(vec![RouteRequest { message: links(), flags: 0 }; 2]);
    assert!(matches!(results.as_slice(), [Err(NetlinkError::Timeout), Err(NetlinkError::Timeout)]), "{results:?}");

    connection.time_limit = ENOUGH;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                // The dump, and the window in one datagram. Nobody waits for them any more.
                kernel.answer(&kernel.receive(), NetlinkPayload::Done(DoneMessage::default()), NLM_F_MULTIPART);
            }
            kernel.dump("asked-for", 0);
        });
        assert_eq!(connection.dump(&links(), name).unwrap(), ["asked-for"]);
    });
}

#[test]
fn requests_whose_acknowledgements_an_overrun_dropped_have_failed_and_the_next_ones_are_answered() {
    let mut connection = RouteConnection::open().unwrap();
    let set_buffer = |connection: &mut RouteConnection, bytes: usize| {
        connection.open.connection.socket_mut().socket_mut().set_rx_buf_sz(u32::try_from(bytes).unwrap()).unwrap();
    };
    let request = RouteRequest { message: get_link(&IfName::new("no-such-link").unwrap()), flags: 0 };
    set_buffer(&mut connection, 4096);
    let results = connection.execute_all(vec![request.clone(); WINDOW]);
    assert_eq!(results.len(), WINDOW);
    for result in results {
        let Err(NetlinkError::Socket { source, .. }) = result else { panic!("{result:?}") };
        assert_eq!(source.raw_os_error(), Some(Errno::ENOBUFS as i32));
    }
    set_buffer(&mut connection, WINDOW * 1024);
    for result in connection.execute_all(vec![request; WINDOW]) {
        assert_eq!(result.unwrap_err().errno(), Some(Errno::ENODEV), "answered");
    }
}

#[test]
fn a_rejected_request_carries_the_kernels_text_and_stops_none_behind_it() {
    let mut connection = RouteConnection::open().unwrap();
    let get = |name| RouteRequest { message: get_link(&IfName::new(name).unwrap()), flags: 0 };
    let results = connection.execute_all(vec![get("lo"), get("no-such-link"), get("lo")]);
    assert!(matches!(results.as_slice(), [Ok(()), Err(_), Ok(())]), "{results:?}");
    assert_eq!(results[1].as_ref().unwrap_err().errno(), Some(Errno::ENODEV));

    // Only strict checking looks at the prefix length, and only an extended acknowledgement says so.
    let mut addresses = AddressMessage::default();
    addresses.header.family = AddressFamily::Inet;
    addresses.header.prefix_len = 7;
    let error = connection.dump(&RouteNetlinkMessage::GetAddress(addresses), parse::new_address).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    assert_eq!(error.to_string(), "rejected by the kernel (ipv4: Invalid values in header for address dump request)");
}

#[test]
fn the_end_of_a_connection_is_no_success() {
    let kernel = FakeKernel::new();
    let mut connection = kernel.connect(ENOUGH);
    drop(kernel);
    let results = connection.execute_all(vec![RouteRequest { message: links(), flags: 0 }]);
    assert!(matches!(results.as_slice(), [Err(NetlinkError::Socket { .. })]), "{results:?}");
}
