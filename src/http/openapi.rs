//! The description of the HTTP surface: every route, its parameters, answers and errors.

/// One operation of the surface.
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
}

pub const ENDPOINTS: &[Endpoint] = &[];

/// The document as it is served and committed.
pub fn render() -> String {
    String::new()
}
