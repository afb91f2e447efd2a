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

/// What the fake agent does with each request.
#[derive(Clone)]
pub enum Behaviour {
    /// It sends this reply.
    Answers(Reply),
    /// It takes the request and never replies.
    Silent,
    /// It closes the connection, like a process that is killed.
    HangsUp,
}

/// A fake agent. It ends when dropped.
pub struct Agent {
    paths: Paths,
    behaviour: Arc<Mutex<Behaviour>>,
    /// What it was asked, each with the host's routes at that moment.
    asked: Receiver<(Request, String)>,
}

impl Agent {
    /// Changes the behaviour.
    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// The next request, waited for, with the host's routes at that moment.
    pub fn asked(&self) -> (Request, String) {
        self.asked.recv_timeout(Duration::from_secs(20)).expect("the plugin asks the agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Whoever connects now finds nobody. The thread ends with the next connection, which is this one.
        let socket = self.paths.socket();
        let last = UnixStream::connect(&socket);
        fs::remove_file(&socket).unwrap();
        drop(last);
    }
}

fn serve(listener: &UnixListener, node: &Namespace, behaviour: &Mutex<Behaviour>, asked: &Sender<(Request, String)>) {
    let mut held = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return };
        let routes = node.sh("ip route; ip -6 route");
        // Nobody listens for these any more when the test ends.
        let _ = asked.send((request, routes));
        let behaviour = behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Answers(reply) => {
                // A DEL does not wait for it.
                let _ = stream.write_all(&[serde_json::to_vec(&reply).unwrap(), b"\n".to_vec()].concat());
            }
            Behaviour::Silent => held.push(stream),
            Behaviour::HangsUp => {}
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
    /// A container with a namespace of its own; the pod is called after it.
    pub fn new(id: &str) -> Self {
        Self { netns: Namespace::new(), id: id.to_owned(), name: format!("pod-{id}") }
    }

    /// The path of its namespace, for any process.
    pub fn netns_path(&self) -> String {
        self.netns.path().to_string_lossy().into_owned()
    }

    /// The host's end of its link.
    pub fn link(&self) -> IfName {
        IfName::of_pod("default", &self.name)
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answered {
    /// Whether it ended with status 0.
    pub success: bool,
    /// Its standard output; null without any.
    pub json: Value,
    /// Its standard error.
    pub stderr: String,
}

impl Answered {
    /// The result of a success.
    pub fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.json
    }

    /// The error's code of a failure.
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

/// A node.
pub struct Node {
    /// Its own network namespace.
    pub host: Arc<Namespace>,
    /// Its folders.
    pub paths: Paths,
    dir: tempfile::TempDir,
}

impl Node {
    /// One with these podCIDRs, set up but for the agent. It answers itself to its podCIDRs' network addresses.
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

    /// A fake agent.
    pub fn agent(&self, behaviour: Behaviour) -> Agent {
        fs::create_dir_all(self.paths.state()).unwrap();
        let listener = UnixListener::bind(self.paths.socket()).unwrap();
        let (behaviour, (sender, asked)) = (Arc::new(Mutex::new(behaviour)), channel());
        let (its_behaviour, host) = (Arc::clone(&behaviour), Arc::clone(&self.host));
        thread::spawn(move || serve(&listener, &host, &its_behaviour, &sender));
        Agent { paths: self.paths.clone(), behaviour, asked }
    }

    /// A fake agent that replies `Ok`.
    pub fn good_agent(&self) -> Agent {
        self.agent(Behaviour::Answers(Reply::Ok))
    }

    /// A network configuration of a version, with some more keys.
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

    /// Starts the plugin on the host with some variables, and hands it its input.
    pub fn start(&self, env: &[(&str, &str)], input: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.env_clear().envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.host.run(|| command.spawn().unwrap());
        // One that complains about its variables may not read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child
    }

    /// Starts it for a pod.
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

    /// Calls the plugin for a pod and waits for its answer.
    pub fn call(&self, command: &str, pod: &Pod, more: &Value) -> Answered {
        answered(self.start_for(command, pod, &self.conf("1.1.0", more)))
    }

    /// ADD that must succeed.
    pub fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod, &json!({})).ok()
    }

    /// DEL that must succeed.
    pub fn del(&self, pod: &Pod) {
        assert_eq!(self.call("DEL", pod, &json!({})).ok(), Value::Null);
    }

    /// Calls the plugin about the node.
    pub fn ask(&self, command: &str, version: &str, more: &Value) -> Answered {
        answered(self.start(&[("CNI_COMMAND", command)], &self.conf(version, more).to_string()))
    }

    /// The addresses in use.
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

    /// Asserts that nothing of any pod is there.
    pub fn assert_empty(&self, why: &str) {
        assert_eq!(self.used(), BTreeSet::new(), "addresses: {why}");
        assert_eq!(self.recorded(), Vec::<String>::new(), "records: {why}");
        assert_eq!(self.links(), Vec::<String>::new(), "links: {why}");
        let drafts = fs::read_dir(self.paths.endpoints()).map_or(0, Iterator::count);
        assert_eq!(drafts, 0, "files beside the records: {why}");
    }
}

/// Waits for the plugin's answer.
pub fn answered(child: Child) -> Answered {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    Answered { success: output.status.success(), json, stderr: String::from_utf8(output.stderr).unwrap() }
}
