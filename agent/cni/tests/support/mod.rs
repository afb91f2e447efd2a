//! A node in a throw-away network namespace with temporary directories, and a fake agent.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "each test binary has it as a module and uses a part of it; a test that panics has failed"
)]

#[path = "../../../podlink/tests/support/mod.rs"]
mod namespace;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

pub(crate) use namespace::Namespace;
use serde_json::{Value, json};
use towpath_core::names::IfName;
use towpath_local::{AddressDir, Endpoints, NETWORK_NAME, NodeState, Paths, Reply, Request};

/// How the fake agent handles each request.
#[derive(Clone)]
pub enum Behaviour {
    /// It sends this reply.
    Reply(Reply),
    /// It reads the request and never replies.
    NoReply,
    /// It closes the connection, like a process that is killed.
    Disconnect,
}

/// A fake agent. It ends when dropped.
pub struct Agent {
    paths: Paths,
    behaviour: Arc<Mutex<Behaviour>>,
    /// The received requests, each with the host's routes at that time.
    requests: Receiver<(Request, String)>,
}

impl Agent {
    /// Changes the behaviour.
    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Waits for the next request; returns it with the host's routes at that time.
    pub fn next_request(&self) -> (Request, String) {
        self.requests.recv_timeout(Duration::from_secs(20)).expect("the plugin sends a request")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The last connection ends the thread. Later ones fail: the socket is deleted.
        let socket = self.paths.socket();
        let last = UnixStream::connect(&socket);
        fs::remove_file(&socket).unwrap();
        drop(last);
    }
}

fn serve(
    listener: &UnixListener,
    node: &Namespace,
    behaviour: &Mutex<Behaviour>,
    requests: &Sender<(Request, String)>,
) {
    let mut open = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return };
        let routes = node.sh("ip route; ip -6 route");
        // The receiver is dropped when the test ends.
        let _ = requests.send((request, routes));
        let behaviour = behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Reply(reply) => {
                // DEL does not wait for the reply.
                let _ = stream.write_all(&[serde_json::to_vec(&reply).unwrap(), b"\n".to_vec()].concat());
            }
            Behaviour::NoReply => open.push(stream),
            Behaviour::Disconnect => {}
        }
    }
}

/// A pod: its namespace and its container.
pub struct Pod {
    pub netns: Namespace,
    pub id: String,
    pub name: String,
}

impl Pod {
    /// A container with its own network namespace; the pod's name contains the container id.
    pub fn new(id: &str) -> Self {
        Self { netns: Namespace::new(), id: id.to_owned(), name: format!("pod-{id}") }
    }

    /// The path of its namespace, valid in any process.
    pub fn netns_path(&self) -> String {
        self.netns.path().to_string_lossy().into_owned()
    }

    /// The host's interface of its veth pair.
    pub fn link(&self) -> IfName {
        IfName::of_pod("default", &self.name)
    }
}

/// The output of a plugin call.
#[derive(Debug)]
pub struct PluginOutput {
    /// Whether its exit status is 0.
    pub success: bool,
    /// Its standard output as JSON; null if empty.
    pub json: Value,
    /// Its standard error.
    pub stderr: String,
}

impl PluginOutput {
    /// The result of a successful call.
    pub fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.json
    }

    /// The error code of a failed call.
    pub fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json["code"].as_u64().unwrap()
    }

    /// The error's message and details.
    pub fn text(&self) -> String {
        format!("{} {}", self.json["msg"], self.json["details"])
    }
}

/// The addresses of a result.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split_once('/').unwrap().0.parse().unwrap()).collect()
}

/// A node with its network namespace and its directories.
pub struct Node {
    /// Its own network namespace.
    pub host: Arc<Namespace>,
    /// Its directories.
    pub paths: Paths,
    dir: tempfile::TempDir,
}

impl Node {
    /// A node with these podCIDRs and no agent. It owns the network addresses of its podCIDRs.
    pub fn new(pod_cidrs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().join("run"), dir.path().join("networks"));
        let pod_cidrs: Vec<ipnet::IpNet> = pod_cidrs.iter().map(|c| c.parse().unwrap()).collect();
        let host = Arc::new(Namespace::new());
        host.sh("ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        for cidr in &pod_cidrs {
            host.sh(&format!("ip address add {} dev lo nodad", cidr.network()));
        }
        NodeState { pod_cidrs, mtu: 1450 }.write(&paths).unwrap();
        Self { host, paths, dir }
    }

    /// Starts a fake agent.
    pub fn agent(&self, behaviour: Behaviour) -> Agent {
        fs::create_dir_all(self.paths.state()).unwrap();
        let listener = UnixListener::bind(self.paths.socket()).unwrap();
        let (behaviour, (sender, requests)) = (Arc::new(Mutex::new(behaviour)), channel());
        let (shared, host) = (Arc::clone(&behaviour), Arc::clone(&self.host));
        thread::spawn(move || serve(&listener, &host, &shared, &sender));
        Agent { paths: self.paths.clone(), behaviour, requests }
    }

    /// Starts a fake agent that replies `Ok`.
    pub fn good_agent(&self) -> Agent {
        self.agent(Behaviour::Reply(Reply::Ok))
    }

    /// A network configuration of a CNI version, with additional keys.
    pub fn conf(&self, version: &str, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": version,
            "name": NETWORK_NAME,
            "type": "towpath",
            "stateDir": self.paths.state(),
            "dataDir": self.dir.path().join("networks"),
        });
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    }

    /// Starts the plugin on the host with these variables and this standard input.
    pub fn start(&self, env: &[(&str, &str)], input: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.env_clear().envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.host.run(|| command.spawn().unwrap());
        // It does not read its input if a variable is invalid.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child
    }

    /// Starts the plugin for a pod.
    pub fn start_for(&self, command: &str, pod: &Pod, conf: &Value) -> Child {
        let netns = pod.netns_path();
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={0};K8S_POD_UID=uid-{0}", pod.name);
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", pod.id.as_str()),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args.as_str()),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        self.start(&env, &conf.to_string())
    }

    /// Calls the plugin for a pod and waits for its output.
    pub fn call(&self, command: &str, pod: &Pod, more: &Value) -> PluginOutput {
        wait_for_output(self.start_for(command, pod, &self.conf("1.1.0", more)))
    }

    /// ADD that must succeed.
    pub fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod, &json!({})).ok()
    }

    /// DEL that must succeed.
    pub fn del(&self, pod: &Pod) {
        assert_eq!(self.call("DEL", pod, &json!({})).ok(), Value::Null);
    }

    /// Calls the plugin without a pod (STATUS, GC).
    pub fn call_without_pod(&self, command: &str, version: &str, more: &Value) -> PluginOutput {
        wait_for_output(self.start(&[("CNI_COMMAND", command)], &self.conf(version, more).to_string()))
    }

    /// The allocated addresses.
    pub fn used(&self) -> BTreeSet<IpAddr> {
        AddressDir::new(self.address_dir()).used().unwrap()
    }

    /// The directory of address files.
    pub fn address_dir(&self) -> PathBuf {
        self.paths.addresses(NETWORK_NAME)
    }

    /// The ids of the containers that have records.
    pub fn recorded(&self) -> Vec<String> {
        let listing = Endpoints::new(&self.paths).list().unwrap();
        listing.endpoints.into_iter().map(|e| e.container_id).collect()
    }

    /// The pods' links on the host.
    pub fn links(&self) -> Vec<String> {
        let text = self.host.sh("ip -o link show type veth");
        text.lines().map(|l| l.split([' ', '@', ':']).filter(|w| !w.is_empty()).nth(1).unwrap().to_owned()).collect()
    }

    /// Asserts that no address, record or link of a pod is left.
    pub fn assert_empty(&self, why: &str) {
        assert_eq!(self.used(), BTreeSet::new(), "addresses: {why}");
        assert_eq!(self.recorded(), Vec::<String>::new(), "records: {why}");
        assert_eq!(self.links(), Vec::<String>::new(), "links: {why}");
        let files = fs::read_dir(self.paths.endpoints()).map_or(0, Iterator::count);
        assert_eq!(files, 0, "files in the directory of records: {why}");
    }
}

/// Waits for the plugin's output.
pub fn wait_for_output(child: Child) -> PluginOutput {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    PluginOutput { success: output.status.success(), json, stderr: String::from_utf8(output.stderr).unwrap() }
}
