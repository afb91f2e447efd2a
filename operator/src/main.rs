//! `towpath-operator`.

fn main() -> anyhow::Result<()> {
    towpath_operator::run::run()
}
