//! Which foreign chains drop pod traffic, in words, and what to do about each.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
};

use ipnet::IpNet;

use super::{
    evaluate::{ChainEnd, FlowPackets, Walked, walk},
    model::{ChainPolicy, ForeignTable, ForwardHook, PodFlow, PodTraffic, TableFamily},
};
use crate::model::Family;

/// Whether the packets are dropped for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// A rule that cannot be evaluated may let them pass.
    Possible,
    /// No rule lets them pass.
    Certain,
}

/// What drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropCause {
    /// The policy of the base chain: no rule takes the packets.
    Policy,
    /// A rule of the chain, or of one that it jumps to.
    Rule,
}

/// A base chain of another program that drops pod traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardDrop {
    /// Family of the table.
    pub table_family: TableFamily,
    /// Name of the table.
    pub table: String,
    /// Name of the base chain.
    pub chain: String,
    /// Priority and policy at the forward hook.
    pub hook: ForwardHook,
    /// What drops. Of several the first in the order of [`Self::flows`].
    pub cause: DropCause,
    /// Of the most certain of the flows.
    pub certainty: Certainty,
    /// Which ways are closed.
    pub flows: BTreeSet<PodFlow>,
    /// The program that the table seems to belong to.
    owner: TableOwner,
    /// The podCIDRs that the table sees.
    pod_cidrs: BTreeSet<IpNet>,
}

/// Base chains that drop what must pass, in the order of the tables.
#[must_use]
pub fn findings(tables: &[ForeignTable], traffic: &PodTraffic) -> Vec<ForwardDrop> {
    let packets = FlowPackets::all(traffic);
    let of_table =
        |table| chains(table).filter_map(|(chain, hook)| evaluate_chain(table, chain, hook, traffic, &packets));
    tables.iter().flat_map(of_table).collect()
}

fn chains(table: &ForeignTable) -> impl Iterator<Item = (&str, ForwardHook)> {
    table.chains.iter().filter_map(|(name, chain)| Some((name.as_str(), chain.forward?)))
}

fn evaluate_chain(
    table: &ForeignTable,
    chain: &str,
    hook: ForwardHook,
    traffic: &PodTraffic,
    packets: &[FlowPackets<'_>],
) -> Option<ForwardDrop> {
    let seen = packets.iter().filter(|packets| table.family.sees(packets.family));
    let dropped = seen.filter_map(|packets| Some((packets.flow, dropped(walk(table, chain, packets), hook.policy)?)));
    let dropped: Vec<(PodFlow, (DropCause, Certainty))> = dropped.collect();
    let (_, (cause, _)) = dropped.iter().min()?;
    let pod_cidrs = traffic.cluster.iter().filter(|net| table.family.sees(Family::of_net(**net)));
    Some(ForwardDrop {
        table_family: table.family,
        table: table.name.clone(),
        chain: chain.to_owned(),
        hook,
        cause: *cause,
        certainty: dropped.iter().map(|(_, (_, certainty))| *certainty).max()?,
        flows: dropped.iter().map(|(flow, _)| *flow).collect(),
        owner: TableOwner::of(table, chain),
        pod_cidrs: pod_cidrs.copied().collect(),
    })
}

fn dropped(walked: Walked, policy: ChainPolicy) -> Option<(DropCause, Certainty)> {
    let cause = match (walked.end, policy) {
        (ChainEnd::Accepted, _) | (ChainEnd::Returned, ChainPolicy::Accept) => return None,
        (ChainEnd::Dropped, _) => DropCause::Rule,
        (ChainEnd::Returned, ChainPolicy::Drop) => DropCause::Policy,
    };
    Some((cause, if walked.may_pass { Certainty::Possible } else { Certainty::Certain }))
}

/// Whose table it is, as far as names tell: so the remedy is in the words of that program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableOwner {
    /// Has a chain `DOCKER-USER`, which dockerd leaves to the user.
    Docker,
    /// The table `firewalld`.
    Firewalld,
    /// Has chains `ufw-…`.
    Ufw,
    /// A chain of `iptables-nft`: those of the kernel are in capitals, and the table is called `filter`.
    Iptables,
    /// Anything else.
    Nft,
}

impl TableOwner {
    fn of(table: &ForeignTable, chain: &str) -> Self {
        if table.name == "firewalld" {
            Self::Firewalld
        } else if table.chains.keys().any(|name| name.starts_with("ufw-") || name.starts_with("ufw6-")) {
            Self::Ufw
        } else if table.chains.contains_key("DOCKER-USER") {
            Self::Docker
        } else if table.family != TableFamily::Inet && chain == "FORWARD" {
            Self::Iptables
        } else {
            Self::Nft
        }
    }
}

impl ForwardDrop {
    /// Family, table and chain, as the commands of nft name them.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{} {} {}", self.table_family, self.table, self.chain)
    }

    /// What to do so that pod traffic passes, one line.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self.owner {
            TableOwner::Docker => format!("accept pod traffic before Docker's rules: {}", self.iptables("DOCKER-USER")),
            TableOwner::Firewalld => {
                let source = |net: &IpNet| format!("firewall-cmd --permanent --zone=trusted --add-source={net}");
                format!("trust the podCIDR: {} && firewall-cmd --reload", self.for_each_cidr(source))
            }
            TableOwner::Ufw => {
                let allow = |net: &IpNet| format!("ufw route allow from {net} to {net}");
                format!("let ufw forward pod traffic: {}", self.for_each_cidr(allow))
            }
            TableOwner::Iptables => self.remedy_of_iptables(),
            TableOwner::Nft => {
                let insert = |net: &IpNet| {
                    let ip = match Family::of_net(*net) {
                        Family::V4 => "ip",
                        Family::V6 => "ip6",
                    };
                    format!("nft insert rule {} {ip} saddr {net} {ip} daddr {net} accept", self.place())
                };
                format!("accept pod traffic in this chain: {}", self.for_each_cidr(insert))
            }
        }
    }

    fn remedy_of_iptables(&self) -> String {
        match self.cause {
            DropCause::Policy => {
                format!("{} -P FORWARD ACCEPT, or accept pod traffic: {}", self.program(), self.iptables("FORWARD"))
            }
            DropCause::Rule => format!("accept pod traffic before the rule: {}", self.iptables("FORWARD")),
        }
    }

    fn iptables(&self, chain: &str) -> String {
        self.for_each_cidr(|net| format!("{} -I {chain} -s {net} -d {net} -j ACCEPT", self.program()))
    }

    const fn program(&self) -> &'static str {
        match self.table_family {
            TableFamily::Ip | TableFamily::Inet => "iptables",
            TableFamily::Ip6 => "ip6tables",
        }
    }

    fn for_each_cidr(&self, command: impl Fn(&IpNet) -> String) -> String {
        let commands: Vec<String> = self.pod_cidrs.iter().map(command).collect();
        commands.join(" && ")
    }
}

/// The message: what is dropped, where.
impl Display for ForwardDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table_family, table, chain, hook, .. } = self;
        let policy = match hook.policy {
            ChainPolicy::Accept => "accept",
            ChainPolicy::Drop => "drop",
        };
        let drops = match self.certainty {
            Certainty::Certain => "drops",
            Certainty::Possible => "may drop",
        };
        let flows: Vec<String> = self.flows.iter().map(ToString::to_string).collect();
        let by = match self.cause {
            DropCause::Policy => "by its policy",
            DropCause::Rule => "by a rule",
        };
        let priority = hook.priority;
        write!(
            f,
            "chain {chain} of table {table_family} {table} (hook forward, priority {priority}, policy {policy}) "
        )?;
        write!(f, "{drops} pod traffic {} {by}", flows.join(", "))?;
        match self.certainty {
            Certainty::Certain => Ok(()),
            Certainty::Possible => f.write_str("; some of its rules cannot be evaluated"),
        }
    }
}
