//! What the service is measured against, each as a process of this binary: `--server NAME ARGUMENT…`.

mod fanout;
mod limit;
mod peer;

use std::io::Read;

use anyhow::bail;
use tokio::net::TcpListener;

/// Runs until the process that started it closes our standard input, or dies.
pub async fn run(arguments: &[String]) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let serving = async {
        match arguments.as_slice() {
            ["limit", file] => limit::serve(listener, file).await,
            ["peer", database, redis] => peer::serve(listener, database, redis, address).await,
            ["fanout"] => fanout::serve(listener, address).await,
            _ => bail!("--server: limit FILE, peer DATABASE_URL REDIS_URL, or fanout"),
        }
    };
    tokio::select! {
        ended = serving => ended,
        _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())) => Ok(()),
    }
}

/// Tells the process that started it where it is.
fn announce(address: std::net::SocketAddr) {
    println!("listens on http://{address}");
}
