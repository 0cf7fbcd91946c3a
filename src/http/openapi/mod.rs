//! The description of the HTTP surface as OpenAPI 3.1: one table of operations (`operations`), the
//! shapes they exchange (`schemas`), and the rendering here. Nothing in it is read from the handlers;
//! `tests/it/snapshots.rs` holds the table against the router.

mod examples;
mod operations;
mod schemas;

use serde_json::{Map, Value, json};

pub use operations::ENDPOINTS;

/// One operation of the surface.
#[derive(Clone, Copy)]
pub struct Endpoint {
    /// In lower case.
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    tag: &'static str,
    description: &'static str,
    parameters: &'static [Parameter],
    body: Option<Body>,
    answers: &'static [Answer],
    failures: &'static [Failure],
}

#[derive(Clone, Copy)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    /// A JSON Schema as text.
    schema: &'static str,
    description: &'static str,
}

#[derive(Clone, Copy)]
struct Body {
    /// A JSON Schema as text.
    schema: &'static str,
    /// (name, JSON)
    examples: &'static [(&'static str, &'static str)],
}

/// An answer that is no error.
#[derive(Clone, Copy)]
struct Answer {
    status: u16,
    description: &'static str,
    headers: &'static [&'static str],
    contents: &'static [Content],
}

#[derive(Clone, Copy)]
struct Content {
    media_type: &'static str,
    /// A JSON Schema as text.
    schema: &'static str,
    /// (name, JSON, or for other media types the text itself)
    examples: &'static [(&'static str, &'static str)],
}

/// A way to fail: one code of one status.
#[derive(Clone, Copy)]
struct Failure {
    status: u16,
    code: &'static str,
    /// `detail` as JSON.
    detail: &'static str,
}

impl Endpoint {
    const fn new(method: &'static str, path: &'static str, tag: &'static str, summary: &'static str) -> Self {
        Self { method, path, summary, tag, description: "", parameters: &[], body: None, answers: &[], failures: &[] }
    }

    const fn about(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    const fn takes(self, parameters: &'static [Parameter]) -> Self {
        Self { parameters, ..self }
    }

    const fn body(self, schema: &'static str, examples: &'static [(&'static str, &'static str)]) -> Self {
        Self { body: Some(Body { schema, examples }), ..self }
    }

    const fn answers(self, answers: &'static [Answer]) -> Self {
        Self { answers, ..self }
    }

    const fn fails(self, failures: &'static [Failure]) -> Self {
        Self { failures, ..self }
    }
}

/// The document as it is served and committed: the same bytes whenever and wherever it is rendered.
pub fn render() -> String {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation(endpoint);
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "unified-backend",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "People directory and alert log for sites with person recognition",
            "description": operations::INTRODUCTION,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [],
        "tags": operations::TAGS.map(|(name, description)| json!({ "name": name, "description": description })),
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "headers": headers(),
            "parameters": { "RequestId": {
                "name": "x-request-id",
                "in": "header",
                "description": "Names the request in logs and errors: 1 to 128 letters, digits, `.`, `_`, `:` or `-`. \
                    Anything else is ignored, and an id is made.",
                "schema": { "type": "string", "maxLength": 128, "pattern": "^[A-Za-z0-9._:-]+$" },
                "example": "ui-7f3a",
            } },
        },
    });
    // A tree of JSON values: there is nothing in it that cannot be written.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut parameters: Vec<Value> = endpoint
        .parameters
        .iter()
        .map(|parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.description,
                "schema": parse(parameter.schema),
            })
        })
        .collect();
    parameters.push(json!({ "$ref": "#/components/parameters/RequestId" }));
    let mut operation = json!({
        "operationId": operation_id(endpoint),
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": responses(endpoint),
    });
    if !endpoint.description.is_empty() {
        operation["description"] = endpoint.description.into();
    }
    if let Some(body) = endpoint.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": content(body.schema, body.examples, "application/json") },
        });
    }
    operation
}

/// `GET /users/{id}/zones` is `get_users_id_zones`.
fn operation_id(endpoint: &Endpoint) -> String {
    let words = endpoint.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(endpoint.method).chain(words).collect::<Vec<_>>().join("_")
}

fn responses(endpoint: &Endpoint) -> Map<String, Value> {
    let mut responses = Map::new();
    for answer in endpoint.answers {
        let mut headers: Map<String, Value> = answer.headers.iter().map(|name| header_reference(name)).collect();
        headers.extend([header_reference("x-request-id")]);
        let mut response = json!({ "description": answer.description, "headers": headers });
        if !answer.contents.is_empty() {
            let contents = answer.contents.iter().map(|content_type| {
                let Content { media_type, schema, examples } = content_type;
                (media_type.to_string(), content(schema, examples, media_type))
            });
            response["content"] = Value::Object(contents.collect());
        }
        responses.insert(answer.status.to_string(), response);
    }
    let common: &[Failure] = if endpoint.body.is_some() { operations::BODY_FAILURES } else { &[] };
    let failures: Vec<Failure> = endpoint.failures.iter().chain(common).copied().collect();
    for failure in &failures {
        let same_status = || failures.iter().filter(|other| other.status == failure.status);
        let codes: Vec<String> = same_status().map(|other| format!("`{}`", other.code)).collect();
        let examples: Map<String, Value> = same_status().map(|other| (other.code.to_owned(), example(other))).collect();
        let of_validation = same_status().filter(|other| other.code == "validation_error").count();
        let (error, validation) = (schemas::reference("Error"), schemas::reference("ValidationError"));
        let schema = match (of_validation, codes.len() - of_validation) {
            (0, _) => error,
            (_, 0) => validation,
            _ => json!({ "anyOf": [validation, error] }),
        };
        let names: &[&str] = if failure.status == 503 { &["x-request-id", "Retry-After"] } else { &["x-request-id"] };
        let response = json!({
            "description": codes.join(", "),
            "headers": names.iter().map(|name| header_reference(name)).collect::<Map<_, _>>(),
            "content": { "application/json": { "schema": schema, "examples": examples } },
        });
        responses.insert(failure.status.to_string(), response);
    }
    responses
}

fn example(failure: &Failure) -> Value {
    let body = json!({ "detail": parse(failure.detail), "code": failure.code, "request_id": "ui-7f3a" });
    json!({ "value": body })
}

fn content(schema: &str, examples: &[(&str, &str)], media_type: &str) -> Value {
    let is_json = media_type == "application/json";
    let value = |text: &str| if is_json { parse(text) } else { text.into() };
    let examples: Map<String, Value> =
        examples.iter().map(|(name, text)| ((*name).to_owned(), json!({ "value": value(text) }))).collect();
    json!({ "schema": parse(schema), "examples": examples })
}

fn header_reference(name: &str) -> (String, Value) {
    (name.to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }))
}

fn headers() -> Value {
    let header = |description: &str, schema: Value, example: &str| json!({ "description": description, "schema": schema, "example": example });
    let text = || json!({ "type": "string" });
    json!({
        "x-request-id": header("The request's id: the one that was sent, or one that was made.", text(), "ui-7f3a"),
        "X-Total-Count": header("All there are, whatever the page.", json!({ "type": "integer", "minimum": 0 }), "42"),
        "ETag": header("Weak, from the content alone: equal on every instance, and for gzip and identity.", text(),
            "W/\"2-8e5b0d9b1c2f4a6f8c1d2e3f4a5b6c7d\""),
        "Dict-Version": header("The token of this content, for `since` and `Last-Event-ID`.", text(), "5f3c9a1.2b7"),
        "Cache-Control": header("`no-cache`: ask again with `If-None-Match` before using a copy.", text(), "no-cache"),
        "Vary": header("`accept-encoding`.", text(), "accept-encoding"),
        "Retry-After": header("Seconds after which to try again.", json!({ "type": "integer", "minimum": 0 }), "1"),
        "Allow": header("The methods that this path has.", text(), "GET,HEAD,POST"),
        "Location": header("Where it is.", text(), "/users"),
        "Content-Security-Policy": header("Nothing is loaded from elsewhere.", text(), "default-src 'self'"),
    })
}

/// The tables are constants of ours; what is not JSON there is shown as text, and a test finds it.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_and_example_of_the_table_is_json() {
        let check = |text: &str| {
            assert!(serde_json::from_str::<Value>(text).is_ok(), "not JSON: {text}");
        };
        for endpoint in ENDPOINTS {
            endpoint.parameters.iter().for_each(|parameter| check(parameter.schema));
            endpoint.failures.iter().for_each(|failure| check(failure.detail));
            for body in endpoint.body.iter() {
                check(body.schema);
                body.examples.iter().for_each(|(_, example)| check(example));
                assert!(!body.examples.is_empty(), "{} {} shows no request", endpoint.method, endpoint.path);
            }
            for content in endpoint.answers.iter().flat_map(|answer| answer.contents) {
                check(content.schema);
                assert!(!content.examples.is_empty(), "{} {} shows no answer", endpoint.method, endpoint.path);
                if content.media_type == "application/json" {
                    content.examples.iter().for_each(|(_, example)| check(example));
                }
            }
        }
        operations::BODY_FAILURES.iter().for_each(|failure| check(failure.detail));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document: Value = serde_json::from_str(&render()).expect("JSON");
        let mut open = vec![&document];
        let mut references = 0;
        while let Some(value) = open.pop() {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let target = document.pointer(reference.trim_start_matches('#'));
                assert!(target.is_some(), "{reference} leads nowhere");
                references += 1;
            }
            match value {
                Value::Object(object) => open.extend(object.values()),
                Value::Array(items) => open.extend(items),
                _ => {}
            }
        }
        assert!(references > 100);
    }
}
