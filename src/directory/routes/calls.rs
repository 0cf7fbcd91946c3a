//! How a call of the directory gets from a request to its answer: the request is understood first, then the
//! directory is asked, then the answer is written. Both the router and the short way before it
//! (`src/http/surface.rs`) go through here.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::routing::{MethodFilter, on};
use futures_util::future::BoxFuture;

use super::{dict, mark, users, zones};
use crate::directory::{Directory, Snapshot, View};
use crate::http::answer::Answer;
use crate::http::compute;
use crate::http::error::ApiError;
use crate::http::extract::{PathTexts, path_integer};

/// What a client asks, as it stands in the request.
pub struct Asked<'a> {
    /// The path's parameters in their order, decoded; empty where there is none.
    pub parameters: [&'a str; 2],
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// Understands a request, or says what is wrong with it.
pub type Parse = fn(&Asked<'_>) -> Result<Call, ApiError>;

/// All of them. Plain ones need no router; those with an `Origin`, an encoded path or a `GET`'s body still go through it.
pub const CALLS: [(MethodFilter, &str, Parse); 20] = [
    (MethodFilter::GET, "/users", users::list_users),
    (MethodFilter::POST, "/users", users::create_user),
    (MethodFilter::GET, "/users/{id}", users::get_user),
    (MethodFilter::PUT, "/users/{id}", users::update_user),
    (MethodFilter::DELETE, "/users/{id}", users::delete_user),
    (MethodFilter::GET, "/users/global/{global_id}", users::get_user_by_global_id),
    (MethodFilter::GET, "/users/by-zone/{zone_id}", users::list_users_in_zone),
    (MethodFilter::GET, "/users/{id}/zones", users::get_user_with_zones),
    (MethodFilter::POST, "/users/{id}/zones/assign", users::assign_zones),
    (MethodFilter::POST, "/users/{id}/zones/{zone_id}/add", users::add_zone),
    (MethodFilter::DELETE, "/users/{id}/zones/{zone_id}", users::remove_zone),
    (MethodFilter::GET, "/stats/users", users::count_users),
    (MethodFilter::GET, "/zones", zones::list_zones),
    (MethodFilter::POST, "/zones", zones::create_zone),
    (MethodFilter::GET, "/zones/{zone_id}", zones::get_zone),
    (MethodFilter::PUT, "/zones/{zone_id}", zones::update_zone),
    (MethodFilter::DELETE, "/zones/{zone_id}", zones::delete_zone),
    (MethodFilter::GET, "/zones/{zone_id}/with-users", zones::get_zone_with_users),
    (MethodFilter::GET, "/stats/zones", zones::count_zones),
    (MethodFilter::GET, "/users-dict", dict::users_dict),
];

/// To write out more users than this takes milliseconds.
pub const USERS_WRITTEN_INLINE: usize = 2_000;

type IsLong = dyn FnOnce(&Snapshot) -> bool + Send;
type FromView = dyn FnOnce(&View) -> Result<Answer, ApiError> + Send;
type FromDirectory = dyn FnOnce(Directory) -> BoxFuture<'static, Result<Answer, ApiError>> + Send;

/// A call that was understood. It keeps nothing of the request.
pub enum Call {
    /// Answered from one validated snapshot.
    OfView(Box<IsLong>, Box<FromView>),
    /// Waits, streams, writes, or asks the database itself.
    OfDirectory(Box<FromDirectory>),
}

impl Call {
    /// Answered in microseconds.
    pub fn of_view(answer: impl FnOnce(&View) -> Result<Answer, ApiError> + Send + 'static) -> Self {
        Self::of_long_view(|_| false, answer)
    }

    /// The same where it may be long.
    pub fn of_long_view(
        is_long: impl FnOnce(&Snapshot) -> bool + Send + 'static,
        answer: impl FnOnce(&View) -> Result<Answer, ApiError> + Send + 'static,
    ) -> Self {
        Self::OfView(Box::new(is_long), Box::new(answer))
    }

    pub fn of_directory<F>(answer: impl FnOnce(Directory) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Answer, ApiError>> + Send + 'static,
    {
        Self::OfDirectory(Box::new(move |directory| Box::pin(answer(directory))))
    }

    pub async fn answer(self, directory: &Directory) -> Result<Answer, ApiError> {
        match self {
            Self::OfView(is_long, answer) => {
                let view = directory.read().await?;
                let stale = view.stale;
                let mut answer = compute(is_long(&view.snapshot), move || answer(&view)).await??;
                mark(&mut answer, stale);
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

/// All calls as routes of the router.
pub fn router(directory: Directory) -> Router {
    let routes = CALLS.into_iter().fold(Router::new(), |router, (method, template, parse)| {
        let handler = async move |State(directory): State<Directory>,
                                  path: PathTexts,
                                  RawQuery(query): RawQuery,
                                  headers: HeaderMap,
                                  body: Bytes| {
            let asked = Asked {
                parameters: [path.text(0), path.text(1)],
                query: query.as_deref(),
                headers: &headers,
                body: &body,
            };
            parse(&asked)?.answer(&directory).await
        };
        router.route(template, on(method, handler))
    });
    routes.with_state(directory)
}
