//! `/users`, `/zones`, `/stats`, `/users-dict`.

use super::Directory;

pub fn router(directory: Directory) -> axum::Router {
    let _ = directory;
    todo!()
}
