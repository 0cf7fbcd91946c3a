//! The limit: the bare HTTP library that answers every request with the same bytes, prepared.

use std::convert::Infallible;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::announce;
use crate::load::find;

/// `file`: an answer as it went over the wire.
pub async fn serve(listener: TcpListener, file: &str) -> anyhow::Result<()> {
    let answer = parse(&std::fs::read(file)?)?;
    announce(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            // A client that goes away is no business of ours.
            drop(http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn parse(raw: &[u8]) -> anyhow::Result<Response<Full<Bytes>>> {
    let end = find(raw, b"\r\n\r\n").context("no HTTP answer")?;
    let (head, body) = (std::str::from_utf8(&raw[..end])?, &raw[end + 4..]);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
    let mut answer = Response::builder().status(status);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        // The library adds these itself.
        if !matches!(name.to_ascii_lowercase().as_str(), "date" | "content-length") {
            answer = answer.header(name, value);
        }
    }
    Ok(answer.body(Full::new(Bytes::copy_from_slice(body)))?)
}
