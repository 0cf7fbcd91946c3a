//! Connections: the URL, its TLS mode, the session's settings. `sslmode` means what it means to libpq:
//! `disable`, `prefer` (default) and `require` encrypt without proof of who answers; `verify-full`
//! checks certificate and name against the public roots or `sslrootcert`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use super::error::DEPENDENCY;
use crate::config::Secret;
use crate::store_error::StoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How to reach the server.
#[derive(Clone)]
pub struct Endpoint {
    pub config: tokio_postgres::Config,
    pub tls: MakeRustlsConnect,
}

impl Endpoint {
    /// `statement_timeout`: after which the server gives up on a statement; zero: never.
    pub fn parse(url: &Secret, statement_timeout: Duration) -> Result<Self, StoreError> {
        let refuse = |detail: String| StoreError::unavailable_because(DEPENDENCY, detail);
        let mut parsed = Url::parse(url.expose()).map_err(|error| refuse(format!("DATABASE_URL: {error}")))?;
        let (mut verify, mut root_file) = (false, None);
        let mut kept = Vec::new();
        for (name, value) in parsed.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "verify-full" | "verify-ca") => {
                    verify = true;
                    kept.push(("sslmode".to_owned(), "require".to_owned()));
                }
                ("sslmode", "allow") => kept.push(("sslmode".to_owned(), "prefer".to_owned())),
                ("sslrootcert", path) => root_file = Some(path.to_owned()),
                _ => kept.push((name.into_owned(), value.into_owned())),
            }
        }
        if kept.is_empty() {
            parsed.set_query(None);
        } else {
            parsed.query_pairs_mut().clear().extend_pairs(&kept);
        }
        let mut config = tokio_postgres::Config::from_str(parsed.as_str())
            .map_err(|error| refuse(format!("DATABASE_URL: {}", crate::store_error::describe(&error))))?;
        config.connect_timeout(CONNECT_TIMEOUT);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_retries(3)
            .keepalives_interval(Duration::from_secs(5));
        config.tcp_user_timeout(Duration::from_secs(10));
        if config.get_application_name().is_none() {
            config.application_name("unified-backend");
        }
        let given = config.get_options().unwrap_or_default();
        config.options(format!(
            "{given} -c statement_timeout={} -c idle_in_transaction_session_timeout=30s -c jit=off -c timezone=UTC",
            statement_timeout.as_millis()
        ));
        let tls = client_config(verify, root_file.as_deref()).map_err(refuse)?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }

    /// The same place, with further settings of the session (`-c name=value`).
    pub fn with_options(&self, options: &str) -> Self {
        let mut config = self.config.clone();
        config.options(format!("{} {options}", self.config.get_options().unwrap_or_default()));
        Self { config, tls: self.tls.clone() }
    }

    /// Opens a connection of its own, outside the pool; it closes when the client is dropped.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, StoreError> {
        let connecting = self.config.connect(self.tls.clone());
        let (client, connection) = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| StoreError::unavailable(DEPENDENCY, error))?,
            Err(_) => {
                let limit_ms = u64::try_from(CONNECT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
                return Err(StoreError::Deadline { dependency: DEPENDENCY, operation: "connect", limit_ms });
            }
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %crate::store_error::describe(&error), "a database connection ended");
            }
        });
        Ok(client)
    }
}

fn client_config(verify: bool, root_file: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    if !verify && root_file.is_none() {
        let verifier = Arc::new(Unverified(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match root_file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| format!("sslrootcert {path}: {error}"))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| format!("sslrootcert {path}: {error}"))?;
                roots.add(certificate).map_err(|error| format!("sslrootcert {path}: {error}"))?;
            }
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// libpq's `prefer` and `require`: encryption against listeners, no proof of identity.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
