//! What is committed equals what is made: the description of the HTTP surface, and the surface itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reqwest::Method;
use serde_json::Value;
use unified_backend::http::openapi;

use crate::on_both_engines;
use crate::support::app::TestApp;
use crate::support::backends::Database;

fn document() -> Value {
    serde_json::from_str(&openapi::render()).expect("JSON")
}

/// Methods by path, as the document has them.
fn described() -> BTreeMap<String, BTreeSet<String>> {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let methods = |operations: &Value| operations.as_object().expect("operations").keys().cloned().collect();
    paths.iter().map(|(path, operations)| (path.clone(), methods(operations))).collect()
}

#[test]
fn the_committed_openapi_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let rendered = openapi::render();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &rendered).expect("the document can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("openapi.json at the root");
    assert!(
        committed == rendered,
        "openapi.json is not what the code describes: UPDATE_SNAPSHOTS=1 cargo test snapshots"
    );
}

#[test]
fn every_operation_has_an_id_of_its_own_and_says_how_it_answers() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            let responses = operation["responses"].as_object().expect("responses");
            let succeeds = |status: &String| status.starts_with(['1', '2', '3']);
            assert!(responses.keys().any(succeeds), "{method} {path} never succeeds");
            assert_eq!(operation.get("requestBody").is_some(), responses.contains_key("413"), "{method} {path}");
            let named: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
            let parameters = operation["parameters"].as_array().expect("parameters").iter();
            let taken: BTreeSet<&str> =
                parameters.filter(|one| one["in"] == "path").filter_map(|one| one["name"].as_str()).collect();
            assert_eq!(named, taken, "{method} {path}");
        }
    }
}

/// Every `.route("…")` of the sources, and every row of the table of calls.
fn mounted() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            let text_at_once = |rest: &str| rest.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned);
            found.extend(product.split(".route(").skip(1).filter_map(text_at_once));
            let rows = product.split("(MethodFilter::").skip(1).filter_map(|row| row.split_once(','));
            found.extend(rows.filter_map(|(_, rest)| text_at_once(rest)));
        }
    }
    found
}

#[test]
fn every_mounted_route_is_described_and_nothing_else() {
    let described: BTreeSet<String> = described().into_keys().collect();
    let mut mounted = mounted();
    assert!(mounted.remove("/docs/{file}"), "the parts of the page /docs");
    assert_eq!(mounted, described);
}

on_both_engines!(every_described_method_is_served_and_no_other);

async fn every_described_method_is_served_and_no_other(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    for (path, methods) in described() {
        let concrete = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
        let concrete = concrete.collect::<Vec<_>>().join("/");
        let answer = app.call(Method::PATCH, &concrete, None).await;
        assert_eq!(answer.status.as_u16(), 405, "PATCH {path}");
        let mut expected: BTreeSet<String> = methods.iter().map(|method| method.to_ascii_uppercase()).collect();
        if expected.contains("GET") {
            expected.insert("HEAD".to_owned());
        }
        let allowed: BTreeSet<String> = answer.header("allow").split(',').map(str::to_owned).collect();
        assert_eq!(allowed, expected, "{path}");
    }
}

on_both_engines!(the_pages_load_nothing_from_elsewhere);

async fn the_pages_load_nothing_from_elsewhere(database: Database) {
    let app = TestApp::start(&database, &[]).await;
    let served = app.get("/openapi.json").await;
    assert_eq!((served.header("content-type"), served.text()), ("application/json", openapi::render().as_str()));

    // The client follows the redirect to the page.
    let docs = app.get("/docs").await;
    assert_eq!(docs.status.as_u16(), 200);
    assert_is_closed(docs.header("content-security-policy"));
    let sources = assets(docs.text());
    assert!(sources.len() >= 3, "{sources:?}");
    for source in sources {
        assert!(!source.contains("//") && !source.starts_with("data:") || source.starts_with("data:"), "{source}");
        let asset = app.get(&format!("/docs/{}", source.trim_start_matches("./"))).await;
        assert_eq!(asset.status.as_u16(), 200, "{source}");
    }
    let start = app.get("/docs/swagger-initializer.js").await;
    assert!(start.text().contains("../openapi.json") && !start.text().contains("http"), "{}", start.text());
    assert_eq!(app.get("/docs/nothing.js").await.expect(404)["code"], "not_found");

    let redoc = app.get("/redoc").await;
    assert_is_closed(redoc.header("content-security-policy"));
    assert!(redoc.text().contains("Redoc.init(\"openapi.json\""));
    assert!(!redoc.text().contains("cdn.redoc.ly"), "the maker's logo is not fetched");
    assert!(assets(redoc.text().split("<script>").next().expect("a head")).is_empty());
}

/// What the policy lets the browser load.
#[track_caller]
fn assert_is_closed(policy: &str) {
    assert!(policy.starts_with("default-src 'self';"), "{policy}");
    for directive in policy.split(';') {
        for source in directive.split_whitespace().skip(1) {
            assert!(["'self'", "'unsafe-inline'", "data:", "blob:"].contains(&source), "{policy}");
        }
    }
}

/// `src` and `href` of a page.
fn assets(page: &str) -> Vec<String> {
    let values = |attribute: &str| -> Vec<String> {
        page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
    };
    [values("src=\""), values("href=\"")].concat()
}
