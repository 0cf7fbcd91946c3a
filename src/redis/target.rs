//! Where Redis is, from the configured URL, and how a connection to it is made:
//!
//! - `redis://[user:password@]host[:port][/database]`, `rediss://…` over TLS, checked against the public
//!   roots or, as redis-py writes it, `?ssl_ca_certs=/path/to/ca.pem`;
//! - `unix:///path/to/socket[?db=0&user=…&pass=…]`;
//! - several `redis://` or `rediss://` URLs separated by commas: Redis Cluster;
//! - `redis-sentinel://[user:password@]host[:port][,host[:port]…]/master[/database]` (`redis+sentinel` too;
//!   port 26379 when none is given; `?tls=true`, and `sentinel_user`, `sentinel_password` where the
//!   sentinels want one of their own): the primary that the sentinels name.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection, SendError};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use url::Url;

const SENTINEL_PORT: u16 = 26_379;
/// How long one attempt to connect may take; calls do not wait for it that long.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Called with each message that the server pushes.
pub type Pushes = Arc<dyn Fn(PushInfo) -> Result<(), SendError> + Send + Sync>;

#[derive(Clone, Debug)]
pub struct Target {
    kind: Kind,
    /// For people: where it is, without secrets.
    pub address: String,
}

#[derive(Clone, Debug)]
enum Kind {
    Single { info: ConnectionInfo, root_certificates: Option<Vec<u8>> },
    Cluster { nodes: Vec<ConnectionInfo> },
    Sentinel(Sentinels),
}

#[derive(Clone)]
struct Sentinels {
    nodes: Vec<ConnectionAddr>,
    master: String,
    database: i64,
    user: Option<String>,
    password: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    is_tls: bool,
}

impl std::fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sentinels").field("nodes", &self.nodes).field("master", &self.master).finish_non_exhaustive()
    }
}

/// An open connection. Clones share it; answers find their askers by order, also when an asker left.
#[derive(Clone)]
pub enum Open {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Target {
    /// The error says what is wrong with the URL, without showing it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let scheme = url.split(':').next().unwrap_or_default();
        if matches!(scheme, "redis-sentinel" | "redis+sentinel") {
            let sentinels = Sentinels::parse(url)?;
            let nodes: Vec<String> = sentinels.nodes.iter().map(ToString::to_string).collect();
            let address = format!("{} (of the sentinels {})", sentinels.master, nodes.join(", "));
            return Ok(Self { kind: Kind::Sentinel(sentinels), address });
        }
        let urls: Vec<&str> = url.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
        let mut nodes = urls.iter().map(|url| connection_info(url)).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<String> = nodes.iter().map(|(info, _)| info.addr().to_string()).collect();
        let address = addresses.join(", ");
        if nodes.iter().any(|(info, _)| matches!(info.addr(), ConnectionAddr::TcpTls { .. })) {
            choose_cryptography();
        }
        let kind = match nodes.len() {
            0 => return Err("REDIS_URL is empty".to_owned()),
            1 => {
                let (info, root_certificates) = nodes.remove(0);
                Kind::Single { info, root_certificates }
            }
            _ => Kind::Cluster { nodes: nodes.into_iter().map(|(info, _)| info).collect() },
        };
        Ok(Self { kind, address })
    }

    /// `pushes`: for a connection that subscribes.
    pub async fn connect(&self, pushes: Option<Pushes>) -> RedisResult<Open> {
        let mut config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_LIMIT)).set_response_timeout(None);
        match &self.kind {
            Kind::Single { info, root_certificates } => {
                if let Some(pushes) = pushes {
                    config = config.set_push_sender(move |info| pushes(info));
                }
                let client = match root_certificates {
                    Some(certificates) => {
                        let certificates = TlsCertificates { client_tls: None, root_cert: Some(certificates.clone()) };
                        Client::build_with_tls(info.clone(), certificates)?
                    }
                    None => Client::open(info.clone())?,
                };
                client.get_multiplexed_async_connection_with_config(&config).await.map(Open::Single)
            }
            Kind::Sentinel(sentinels) => {
                if let Some(pushes) = pushes {
                    config = config.set_push_sender(move |info| pushes(info));
                }
                sentinels.client()?.get_async_connection_with_config(&config).await.map(Open::Single)
            }
            Kind::Cluster { nodes } => {
                let mut builder = ClusterClient::builder(nodes.clone())
                    .use_protocol(ProtocolVersion::RESP3)
                    .tcp_settings(tcp_settings())
                    .connection_timeout(CONNECT_LIMIT);
                if let Some(pushes) = pushes {
                    builder = builder.push_sender(move |info| pushes(info));
                }
                builder.build()?.get_async_connection().await.map(Open::Cluster)
            }
        }
    }
}

impl Open {
    pub async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }
}

impl ConnectionLike for Open {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

impl Sentinels {
    fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "REDIS_URL: expected redis-sentinel://[user:password@]host:port,host:port/master/database";
        // Several URLs, as for Cluster, mean the same as one with several hosts.
        let mut parts = url.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let (scheme, rest) = first.split_once("://").ok_or(FORM)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (mut hosts, mut path) = (vec![authority.rsplit('@').next().unwrap_or(authority)], path);
        for part in parts {
            let part = part.split_once("://").map_or(part, |(_, rest)| rest);
            let (authority, this_path) = part.split_once('/').unwrap_or((part, ""));
            hosts.push(authority.rsplit('@').next().unwrap_or(authority));
            path = if this_path.is_empty() { path } else { this_path };
        }
        let user_info = authority.rsplit_once('@').map(|(info, _)| format!("{info}@")).unwrap_or_default();
        // Only the first host: a URL has no place for several.
        let single = Url::parse(&format!("{scheme}://{user_info}{}/{path}", hosts.first().ok_or(FORM)?));
        let single = single.map_err(|_| FORM.to_owned())?;
        let mut segments = single.path_segments().into_iter().flatten();
        let master = decoded(segments.next().unwrap_or_default()).ok_or(FORM)?;
        let database = segments.next().filter(|text| !text.is_empty()).map_or(Ok(0), str::parse).map_err(|_| FORM)?;
        if master.is_empty() {
            return Err(format!("{FORM}; the name of the master is missing"));
        }
        let query: HashMap<Cow<'_, str>, Cow<'_, str>> = single.query_pairs().collect();
        let is_tls = query.get("tls").is_some_and(|value| matches!(&**value, "true" | "1" | "yes"));
        if is_tls {
            choose_cryptography();
        }
        let nodes = hosts.iter().map(|host| sentinel_address(host, is_tls).ok_or(FORM.to_owned()));
        let asked = |name: &str| query.get(name).map(|value| value.to_string());
        Ok(Self {
            nodes: nodes.collect::<Result<_, _>>()?,
            master,
            database,
            user: Some(single.username()).filter(|user| !user.is_empty()).and_then(decoded),
            password: single.password().and_then(decoded),
            sentinel_user: asked("sentinel_user"),
            sentinel_password: asked("sentinel_password"),
            is_tls,
        })
    }

    /// Made anew for each connection, so the sentinels are asked anew who the primary is.
    fn client(&self) -> RedisResult<SentinelClient> {
        let mut builder = SentinelClientBuilder::new(self.nodes.clone(), &self.master, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_tcp_settings(tcp_settings())
            .set_client_to_redis_db(self.database);
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = &self.sentinel_user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if self.is_tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        builder.build()
    }
}

fn sentinel_address(text: &str, is_tls: bool) -> Option<ConnectionAddr> {
    // The scheme only has to be one whose host is parsed as text.
    let url = Url::parse(&format!("redis://{text}")).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    let port = url.port().unwrap_or(SENTINEL_PORT);
    Some(match is_tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    })
}

fn connection_info(url: &str) -> Result<(ConnectionInfo, Option<Vec<u8>>), String> {
    let refuse = |error: RedisError| format!("REDIS_URL: {error}");
    let parsed = Url::parse(url).map_err(|error| format!("REDIS_URL: {error}"))?;
    let root_file = parsed.query_pairs().find(|(name, _)| name == "ssl_ca_certs").map(|(_, path)| path.into_owned());
    let root_certificates = root_file
        .map(|path| std::fs::read(&path).map_err(|error| format!("REDIS_URL: ssl_ca_certs={path}: {error}")))
        .transpose()?;
    let info = parsed.into_connection_info().map_err(refuse)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok((info.set_redis_settings(settings).set_tcp_settings(tcp_settings()), root_certificates))
}

/// Small questions must not wait for Nagle, and a peer that vanished is noticed by the kernel too.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_user_timeout(Duration::from_secs(10))
}

fn decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned)
}

/// The client library takes the process' default provider, of which there is one by rustls' design.
/// Whoever was first, in this service or another one of the process, chose well enough.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another part of the process chose the TLS cryptography at the same moment");
    }
}

/// For errors that only this module makes.
pub fn too_slow() -> RedisError {
    RedisError::from((ErrorKind::Io, "the connection was not ready in time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(url: &str) -> Sentinels {
        match Target::parse(url).expect("a good URL").kind {
            Kind::Sentinel(sentinels) => sentinels,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sentinels_are_read_from_one_url_or_several() {
        for url in [
            "redis-sentinel://ann:p%40ss@one:1000,two/mymaster/3?sentinel_password=other",
            "redis+sentinel://ann:p%40ss@one:1000/mymaster/3?sentinel_password=other,redis+sentinel://two",
        ] {
            let found = sentinels(url);
            let nodes: Vec<String> = found.nodes.iter().map(ToString::to_string).collect();
            assert_eq!(nodes, ["one:1000", "two:26379"], "{url}");
            assert_eq!((&*found.master, found.database), ("mymaster", 3), "{url}");
            assert_eq!((found.user.as_deref(), found.password.as_deref()), (Some("ann"), Some("p@ss")));
            assert_eq!(found.sentinel_password.as_deref(), Some("other"));
        }
        assert!(Target::parse("redis-sentinel://one:1000").is_err(), "without a master");
        assert!(Target::parse("redis-sentinel://one:port/mymaster").is_err());
    }

    #[test]
    fn each_kind_of_url_is_understood_and_no_address_shows_a_secret() {
        for (url, address) in [
            ("redis://:secret@here:7000/2", "here:7000"),
            ("rediss://ann:secret@here", "here:6379"),
            ("unix:///run/redis.sock?db=2&pass=secret", "/run/redis.sock"),
            ("redis://:secret@one:7000,redis://:secret@two:7001", "one:7000, two:7001"),
            ("redis-sentinel://:secret@one/mymaster", "mymaster (of the sentinels one:26379)"),
        ] {
            assert_eq!(Target::parse(url).expect(url).address, address);
        }
        let Kind::Single { info, .. } = Target::parse("unix:///run/redis.sock?db=2").expect("good").kind else {
            panic!("one server");
        };
        assert_eq!(info.redis_settings().db(), 2);
        assert!(info.tcp_settings().nodelay() && info.redis_settings().protocol() == ProtocolVersion::RESP3);
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why_without_its_password() {
        for url in ["redis://:secret@here/notanumber", "rediss://:secret@here?ssl_ca_certs=/no/such/file"] {
            let error = Target::parse(url).expect_err(url);
            assert!(error.contains("REDIS_URL") && !error.contains("secret"), "{error}");
        }
    }
}
