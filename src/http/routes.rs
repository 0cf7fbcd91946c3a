//! Which route a path belongs to, and what the surface has to know of it. The router finds the handler;
//! this table is asked before it, and answers for calls of the directory in its place.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use axum::routing::MethodFilter;
use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter};

use super::openapi::ENDPOINTS;
use crate::directory::routes::{CALLS, Parse};
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
    /// How its calls of the directory are understood.
    calls: Vec<(MethodFilter, Parse)>,
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
        let templates: BTreeSet<&'static str> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        let mut matcher = matchit::Router::new();
        for template in templates.into_iter().chain([UNDOCUMENTED]) {
            matcher.insert(template, Route::new(template))?;
        }
        Ok(Self { matcher, unmatched: Route::new("unmatched") })
    }

    /// The route of a path, and the path's parameters in their order, as they stand in it. None has more than two.
    pub fn find<'t, 'p>(&'t self, path: &'p str) -> (&'t Route, [&'p str; 2]) {
        let mut parameters = [""; 2];
        let Ok(found) = self.matcher.at(path) else { return (&self.unmatched, parameters) };
        for (parameter, (_, text)) in parameters.iter_mut().zip(found.params.iter()) {
            *parameter = text;
        }
        (found.value, parameters)
    }
}

impl Route {
    fn new(template: &'static str) -> Self {
        let calls = CALLS.into_iter().filter(|(_, of, _)| *of == template).map(|(method, _, parse)| (method, parse));
        let body_limit = if template == "/alerts" { ALERTS_BODY_LIMIT } else { BODY_LIMIT };
        Self {
            template,
            body_limit,
            is_waiting: WAITING.contains(&template),
            calls: calls.collect(),
            series: RwLock::default(),
        }
    }

    /// How a method's call of the directory is understood; `None`: that is for the router.
    pub fn find_call(&self, method: &Method) -> Option<Parse> {
        if self.calls.is_empty() {
            return None;
        }
        let method = MethodFilter::try_from(method.clone()).ok()?;
        self.calls.iter().find(|(of, _)| *of == method).map(|(_, parse)| *parse)
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
            (route.template, parameters.map(str::to_owned))
        };
        let expected = |template, parameters: [&str; 2]| (template, parameters.map(str::to_owned));
        assert_eq!(find("/users/7/zones/a%20b"), expected("/users/{id}/zones/{zone_id}", ["7", "a%20b"]));
        assert_eq!(find("/users/7"), expected("/users/{id}", ["7", ""]));
        assert_eq!(find("/users-dict"), expected("/users-dict", ["", ""]));
        assert_eq!(find("/nowhere"), expected("unmatched", ["", ""]));
        assert_eq!(find("/users/"), expected("unmatched", ["", ""]));
        assert!(ENDPOINTS.iter().all(|endpoint| endpoint.path.matches('{').count() <= 2));
    }

    #[test]
    fn every_call_is_a_documented_endpoint_and_found_by_its_method() {
        let table = RouteTable::new().expect("routes");
        let mut found = 0;
        for endpoint in ENDPOINTS {
            let method = Method::from_bytes(endpoint.method.to_ascii_uppercase().as_bytes()).expect("a method");
            found += usize::from(table.find(endpoint.path).0.find_call(&method).is_some());
        }
        assert_eq!(found, CALLS.len());
        let route = table.find("/users/7").0;
        let is_call = |method: &Method| route.find_call(method).is_some();
        assert!(is_call(&Method::GET) && is_call(&Method::PUT));
        assert!(!is_call(&Method::HEAD) && !is_call(&Method::PATCH));
        assert!(!is_call(&Method::from_bytes(b"BREW").expect("a method")));
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
