//! How many connections there may be, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use stepcast_shared::problem::Problem;

/// Seconds after which somebody who found no place may come back.
const RETRY_AFTER: u64 = 5;

/// The places of a gateway.
#[derive(Debug)]
pub struct Places {
    most: usize,
    /// 0 for no limit.
    most_per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Kept only while there is a limit.
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
}

impl Places {
    /// `most` places, of which one address may have `most_per_address`; 0 for as many as there are.
    pub fn new(most: usize, most_per_address: usize) -> Self {
        Self { most, most_per_address, taken: Mutex::default() }
    }

    /// Takes a place for a connection from `address`, or says why there is none.
    pub fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, Problem> {
        let mut taken = self.lock();
        if taken.all >= self.most {
            count_refusal("all");
            return Err(
                Problem::new(503, "too-many-connections", "Too many connections").retry_after(RETRY_AFTER)
            );
        }
        let address = address.filter(|_| self.most_per_address > 0);
        if let Some(address) = address {
            let of_address = taken.by_address.entry(address).or_default();
            if *of_address >= self.most_per_address {
                count_refusal("address");
                let detail = format!("one address may have {} connections", self.most_per_address);
                return Err(Problem::new(429, "too-many-connections", "Too many connections")
                    .detail(detail)
                    .retry_after(RETRY_AFTER));
            }
            *of_address += 1;
        }
        taken.all += 1;
        metrics::gauge!("stepcast_gateway_connections").set(taken.all as f64);
        Ok(Place { places: Arc::clone(self), address })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        metrics::gauge!("stepcast_gateway_connections").set(taken.all as f64);
        if let Some(address) = self.address
            && let Some(of_address) = taken.by_address.get_mut(&address)
        {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

fn count_refusal(reason: &'static str) {
    metrics::counter!("stepcast_gateway_refused_total", "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_once_it_is_left() {
        let places = Arc::new(Places::new(2, 0));
        let (first, _second) = (places.take(None).unwrap(), places.take(None).unwrap());
        assert_eq!(places.take(None).unwrap_err().status, 503);
        drop(first);
        assert!(places.take(None).is_ok());
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let places = Arc::new(Places::new(10, 2));
        let (here, there): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = places.take(Some(here)).unwrap();
        let _second = places.take(Some(here)).unwrap();
        assert_eq!(places.take(Some(here)).unwrap_err().status, 429);
        let _other = places.take(Some(there)).unwrap();
        drop(first);
        assert!(places.take(Some(here)).is_ok());
        assert_eq!(places.lock().by_address.len(), 2);
    }
}
