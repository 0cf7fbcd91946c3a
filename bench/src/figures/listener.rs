//! Listeners of the alert stream and the alerts they wait for. A thousand of them share one thread with
//! a clock, so a listener reads frames by hand.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::find;

const ALERT_BYTES: usize = 200;
const READ_BYTES: usize = 16 * 1024;

/// An alert of 200 bytes that begins with its number.
pub fn alert(number: usize) -> String {
    let head = format!(
        r#"{{"n":{number},"user_id":"{}","user_name":null,"camera_id":{},"zone_id":"5","iop":0.83,"threshold":0.5,"status":"violation","timestamp":"2026-11-24T10:00:00.250Z","note":""#,
        number % 1000 + 1,
        number % 16,
    );
    let padding = ALERT_BYTES.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(padding))
}

fn number_of(alert: &[u8]) -> Option<usize> {
    let digits = alert.strip_prefix(b"{\"n\":")?;
    std::str::from_utf8(digits.split(|byte| *byte == b',').next()?).ok()?.parse().ok()
}

pub struct Listener {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Listener {
    /// `query`: with its `?`.
    pub async fn connect(address: SocketAddr, query: &str) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /ws/alerts{query} HTTP/1.1\r\nhost: bench\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut listener = Self { stream, buffer: vec![0; READ_BYTES], filled: 0 };
        loop {
            listener.fill().await?;
            let seen = &listener.buffer[..listener.filled];
            if let Some(end) = find(seen, b"\r\n\r\n") {
                if !seen.starts_with(b"HTTP/1.1 101") {
                    bail!("no WebSocket: {}", String::from_utf8_lossy(seen));
                }
                listener.consume(end + 4);
                return Ok(listener);
            }
        }
    }

    /// Waits for frames and hands out the numbers of the alerts in them.
    pub async fn read(&mut self, mut each: impl FnMut(usize)) -> anyhow::Result<()> {
        self.fill().await?;
        let mut consumed = 0;
        while let Some((opcode, begin, end)) = frame(&self.buffer[consumed..self.filled])? {
            let payload = &self.buffer[consumed + begin..consumed + end];
            match opcode {
                1 => each(number_of(payload).context("an alert that nobody sent")?),
                8 => bail!("closed: {}", String::from_utf8_lossy(payload.get(2..).unwrap_or_default())),
                _ => {}
            }
            consumed += end;
        }
        self.consume(consumed);
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.filled * 2, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => bail!("the stream ended"),
            count => self.filled += count,
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.buffer.copy_within(count..self.filled, 0);
        self.filled -= count;
    }
}

/// The opcode of the first frame and where its payload is, if it is whole. Servers do not mask.
fn frame(bytes: &[u8]) -> anyhow::Result<Option<(u8, usize, usize)>> {
    let (Some(first), Some(second)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
    let (begin, length) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (4, usize::from(u16::from_be_bytes(length.try_into()?))),
            None => return Ok(None),
        },
        127.. => bail!("a frame that is larger than any alert"),
        length => (2, usize::from(*length)),
    };
    Ok((bytes.len() >= begin + length).then_some((first & 0x0f, begin, begin + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_has_its_size_and_its_number() {
        for number in [0, 7, 199_999] {
            let alert = alert(number);
            assert_eq!(alert.len(), ALERT_BYTES);
            assert_eq!(number_of(alert.as_bytes()), Some(number));
            assert!(serde_json::from_str::<serde_json::Value>(&alert).is_ok());
        }
    }

    #[test]
    fn a_frame_is_read_when_it_is_whole() {
        let text = alert(5);
        let long = [&[0x81, 126, 0, 200], text.as_bytes()].concat();
        assert_eq!(frame(&long).expect("a frame"), Some((1, 4, 204)));
        assert_eq!(frame(&long[..203]).expect("a part"), None);
        assert_eq!(frame(&[0x81, 126, 0]).expect("a part"), None);
        assert_eq!(frame(&[0x89, 0, 0x81]).expect("a ping"), Some((9, 2, 2)));
        assert!(frame(&[0x81, 127]).is_err());
    }
}
