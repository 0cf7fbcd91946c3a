//! Pages of one snapshot that are written already. Pure.

use bytes::Bytes;
use parking_lot::Mutex;

/// Screens ask for few pages, the first ones mostly.
const PAGES: usize = 16;
/// Larger pages are for programs that walk through everything once.
const PAGE_BYTES: usize = 64 * 1024;

/// (skip, limit)
type Place = (usize, usize);

/// At most 16 pages of at most 64 KiB; the ones that were asked for first stay.
#[derive(Default)]
pub struct Pages(Mutex<Vec<(Place, Bytes)>>);

impl Pages {
    pub fn get_or_write(&self, place: Place, write: impl FnOnce() -> Bytes) -> Bytes {
        let find = |pages: &[(Place, Bytes)]| pages.iter().find(|(at, _)| *at == place).map(|(_, page)| page.clone());
        if let Some(page) = find(&self.0.lock()) {
            return page;
        }
        let page = write();
        let mut pages = self.0.lock();
        if page.len() <= PAGE_BYTES && pages.len() < PAGES && find(&pages).is_none() {
            pages.push((place, page.clone()));
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_once_unless_it_is_large_or_one_of_many() {
        let pages = Pages::default();
        let mut written = 0;
        let mut ask = |place: Place, bytes: usize| {
            let page = pages.get_or_write(place, || {
                written += 1;
                vec![b'x'; bytes].into()
            });
            assert_eq!(page.len(), bytes);
            written
        };
        assert_eq!((ask((0, 100), 10), ask((0, 100), 10), ask((0, 50), 5)), (1, 1, 2));
        assert_eq!((ask((1, 1), PAGE_BYTES + 1), ask((1, 1), PAGE_BYTES + 1)), (3, 4));
        for skip in 2..PAGES {
            assert_eq!(ask((skip, 1), 1), skip + 3);
        }
        assert_eq!((ask((90, 1), 1), ask((90, 1), 1)), (PAGES + 3, PAGES + 4));
    }
}
