//! Which route a path belongs to, and what the surface has to know of it. The router finds the handler;
//! this table is asked before it, and answers for reads of the directory in its place.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter};

use super::openapi::ENDPOINTS;
use crate::directory::routes::{Parse, READS};
use crate::telemetry::metrics::Metrics;

const BODY_LIMIT: usize = 1024 * 1024;
/// For `POST /alerts`, which takes a thousand alerts at once.
const ALERTS_BODY_LIMIT: usize = 16 * 1024 * 1024;
/// Served, and nothing for programs.
const UNDOCUMENTED: &str = "/docs/{file}";
/// Of these, a request waits for something to happen, within limits of its own.
const WAITING: [&str; 3] = ["/ws/alerts", "/alerts/stream", "/users-dict"];

pub struct RouteTable {
    matcher: matchit::Router<Route>,
    unmatched: Route,
}

/// A route, or all paths that have none.
pub struct Route {
    /// As the router has it: `/users/{id}`.
    pub template: &'static str,
    /// Bytes that a body may have.
    pub body_limit: usize,
    /// Whether its requests have no deadline.
    pub is_waiting: bool,
    /// How a `GET` of it is read, where one snapshot of the directory answers it.
    pub parse: Option<Parse>,
    /// The metrics of the route so far. Few, so that looking through them is cheaper than hashing labels.
    series: RwLock<Vec<Series>>,
}

struct Series {
    method: &'static str,
    status: StatusCode,
    requests: IntCounter,
    seconds: Histogram,
}

impl RouteTable {
    pub fn new() -> Result<Self, matchit::InsertError> {
        let reads: HashMap<&str, Parse> = READS.into_iter().collect();
        let templates: BTreeSet<&'static str> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        let mut matcher = matchit::Router::new();
        for template in templates.into_iter().chain([UNDOCUMENTED]) {
            matcher.insert(template, Route::new(template, reads.get(template).copied()))?;
        }
        Ok(Self { matcher, unmatched: Route::new("unmatched", None) })
    }

    /// The route of a path, and the path's parameters in their order, as they stand in it.
    pub fn find<'a>(&'a self, path: &'a str) -> (&'a Route, Vec<&'a str>) {
        match self.matcher.at(path) {
            Ok(found) => (found.value, found.params.iter().map(|(_, text)| text).collect()),
            Err(_) => (&self.unmatched, Vec::new()),
        }
    }
}

impl Route {
    fn new(template: &'static str, parse: Option<Parse>) -> Self {
        let body_limit = if template == "/alerts" { ALERTS_BODY_LIMIT } else { BODY_LIMIT };
        Self { template, body_limit, is_waiting: WAITING.contains(&template), parse, series: RwLock::default() }
    }

    /// Counts a finished request.
    pub fn record(&self, metrics: &Metrics, method: &Method, status: StatusCode, took: Duration) {
        let method = method_label(method);
        let is_this = |series: &&Series| series.status == status && series.method == method;
        if let Some(series) = self.series.read().iter().find(is_this) {
            return series.record(took);
        }
        let series = Series {
            method,
            status,
            requests: metrics.http_requests.with_label_values(&[method, self.template, status.as_str()]),
            seconds: metrics.http_request_seconds.with_label_values(&[method, self.template]),
        };
        series.record(took);
        self.series.write().push(series);
    }
}

impl Series {
    fn record(&self, took: Duration) {
        self.requests.inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

/// A client may send any word for a method; each would be a time series for ever.
fn method_label(method: &Method) -> &'static str {
    const STANDARD: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    STANDARD.into_iter().find(|standard| *standard == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_route_and_its_parameters() {
        let table = RouteTable::new().expect("no two routes for a path");
        let find = |path| {
            let (route, parameters) = table.find(path);
            (route.template, parameters.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(
            find("/users/7/zones/a%20b"),
            ("/users/{id}/zones/{zone_id}", vec!["7".to_owned(), "a%20b".to_owned()])
        );
        assert_eq!(find("/users-dict"), ("/users-dict", vec![]));
        assert_eq!(find("/nowhere"), ("unmatched", vec![]));
        assert_eq!(find("/users/"), ("unmatched", vec![]));
    }

    #[test]
    fn every_read_is_a_documented_route() {
        for (template, _) in READS {
            let is_it =
                |endpoint: &&super::super::openapi::Endpoint| endpoint.path == template && endpoint.method == "get";
            assert!(ENDPOINTS.iter().any(|endpoint| is_it(&endpoint)), "{template}");
        }
    }

    #[test]
    fn a_series_is_made_once_whatever_clients_call_their_methods() {
        let (table, metrics) = (RouteTable::new().expect("routes"), Metrics::new().expect("metrics"));
        let (route, _) = table.find("/health");
        for word in ["GET", "BREW", "WHEN", "GET"] {
            let method = Method::from_bytes(word.as_bytes()).expect("a method");
            route.record(&metrics, &method, StatusCode::OK, Duration::from_millis(1));
        }
        assert_eq!(route.series.read().len(), 2);
        assert_eq!(metrics.http_requests.with_label_values(&["other", "/health", "200"]).get(), 2);
        assert_eq!(metrics.http_requests.with_label_values(&["GET", "/health", "200"]).get(), 2);
    }
}
