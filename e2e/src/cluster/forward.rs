//! Forwards a loopback port of the machine to the API server of a cluster.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::enter_netns;

/// Forwards a free loopback port, whose number it writes to `port_file`, to `to` inside the namespace. Does not return.
///
/// # Errors
/// When the port cannot be opened or the namespace cannot be entered.
pub fn serve(netns: &str, to: SocketAddr, port_file: &Path) -> Result<()> {
    // A restarted forwarder keeps the port, because the kubeconfig names it.
    let wanted = fs::read_to_string(port_file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .with_context(|| format!("listen on loopback port {wanted}"))?;
    // The listener stays where it was opened; what is opened from here on is inside.
    enter_netns(netns)?;
    let temporary = port_file.with_extension("new");
    fs::write(&temporary, listener.local_addr()?.port().to_string())
        .with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, port_file).with_context(|| format!("write {}", port_file.display()))?;
    for client in listener.incoming() {
        let client = client.context("accept a connection")?;
        std::thread::spawn(move || {
            if let Err(error) = join(&client, to) {
                eprintln!("a connection to {to} ended: {error}");
            }
        });
    }
    Ok(())
}

fn join(client: &TcpStream, to: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let upstream = scope.spawn(|| copy(client, &server));
        let downstream = copy(&server, client);
        upstream.join().unwrap_or(Ok(())).and(downstream)
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
    copied.map(drop)
}
