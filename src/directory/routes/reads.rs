//! How a read of the directory gets from a request to its answer: the request is understood first, then
//! the directory asked once, then the answer written from one snapshot. Both the router and the short way
//! before it (`src/http/surface.rs`) go through here.

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::routing::{MethodRouter, get};
use futures_util::future::BoxFuture;

use super::{dict, mark, users, zones};
use crate::directory::{Directory, Snapshot, View};
use crate::http::answer::Answer;
use crate::http::compute;
use crate::http::error::ApiError;
use crate::http::extract::{PathTexts, path_integer};

/// What a client asks, as it stands in the request.
pub struct Asked<'a> {
    /// The path's parameters in their order, decoded.
    pub parameters: &'a [&'a str],
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// Understands a request, or says what is wrong with it.
pub type Parse = fn(&Asked<'_>) -> Result<Read, ApiError>;

/// The reads that need no router, by their route. A question with a body, an `Origin` or an encoded path
/// still goes through it.
pub const READS: [(&str, Parse); 11] = [
    ("/users", users::list_users),
    ("/users/{id}", users::get_user),
    ("/users/global/{global_id}", users::get_user_by_global_id),
    ("/users/by-zone/{zone_id}", users::list_users_in_zone),
    ("/users/{id}/zones", users::get_user_with_zones),
    ("/stats/users", users::count_users),
    ("/zones", zones::list_zones),
    ("/zones/{zone_id}", zones::get_zone),
    ("/zones/{zone_id}/with-users", zones::get_zone_with_users),
    ("/stats/zones", zones::count_zones),
    ("/users-dict", dict::users_dict),
];

/// To write out more users than this takes milliseconds.
pub const USERS_WRITTEN_INLINE: usize = 2_000;

type FromView = dyn FnOnce(&View) -> Result<Answer, ApiError> + Send;
type FromDirectory = dyn FnOnce(Directory) -> BoxFuture<'static, Result<Answer, ApiError>> + Send;

/// A read that was understood.
pub enum Read {
    /// Answered from one validated snapshot, in microseconds.
    OfView(Box<FromView>),
    /// Waits, streams, asks the database itself, or takes long to write.
    OfDirectory(Box<FromDirectory>),
}

impl Read {
    pub fn of_view(answer: impl FnOnce(&View) -> Result<Answer, ApiError> + Send + 'static) -> Self {
        Self::OfView(Box::new(answer))
    }

    /// The same where it may be long.
    pub fn of_long_view(
        is_long: impl FnOnce(&Snapshot) -> bool + Send + 'static,
        answer: impl FnOnce(&View) -> Result<Answer, ApiError> + Send + 'static,
    ) -> Self {
        Self::of_directory(async move |directory: Directory| {
            let view = directory.read().await?;
            let stale = view.stale;
            let mut answer = compute(is_long(&view.snapshot), move || answer(&view)).await??;
            mark(&mut answer, stale);
            Ok(answer)
        })
    }

    pub fn of_directory<F>(answer: impl FnOnce(Directory) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Answer, ApiError>> + Send + 'static,
    {
        Self::OfDirectory(Box::new(move |directory| Box::pin(answer(directory))))
    }

    pub async fn answer(self, directory: &Directory) -> Result<Answer, ApiError> {
        match self {
            Self::OfView(answer) => {
                let view = directory.read().await?;
                let mut answer = answer(&view)?;
                mark(&mut answer, view.stale);
                Ok(answer)
            }
            Self::OfDirectory(answer) => answer(directory.clone()).await,
        }
    }
}

impl Asked<'_> {
    /// A parameter of the path as it stands.
    pub fn text(&self, index: usize) -> &str {
        self.parameters.get(index).copied().unwrap_or_default()
    }

    /// A parameter of the path that is an integer.
    pub fn integer(&self, index: usize, name: &'static str) -> Result<i64, ApiError> {
        path_integer(self.text(index), name)
    }
}

/// The read as a route of the router.
pub fn read(parse: Parse) -> MethodRouter<Directory> {
    get(async move |State(directory): State<Directory>, path: PathTexts, RawQuery(query), headers: HeaderMap| {
        let parameters: Vec<&str> = path.0.iter().map(String::as_str).collect();
        let read = parse(&Asked { parameters: &parameters, query: query.as_deref(), headers: &headers })?;
        read.answer(&directory).await
    })
}
