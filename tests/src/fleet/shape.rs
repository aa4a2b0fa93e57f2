//! What a fleet is made of: how many of what, and what lies between them.

/// Simulated servers.
pub const BACKENDS: usize = 4;

/// How many there are of what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Servers of NATS: one, or three as a cluster.
    pub nats: usize,
    pub apis: usize,
    pub gateways: usize,
    /// Pollers, all with the same list of servers.
    pub pollers: usize,
    /// Whether rows are kept in PostgreSQL, which several apis need.
    pub postgres: bool,
}

impl Shape {
    /// One of everything that can be alone, on SQLite.
    pub const SMALL: Self = Self { nats: 1, apis: 1, gateways: 2, pollers: 2, postgres: false };
    /// As it is deployed where nothing may stand still.
    pub const LARGE: Self = Self { nats: 3, apis: 2, gateways: 2, pollers: 3, postgres: true };

    /// Every service of ours, in the order in which they start.
    pub fn services(self) -> impl Iterator<Item = Part> {
        let apis = (0..self.apis).map(Part::Api);
        apis.chain((0..self.gateways).map(Part::Gateway)).chain((0..self.pollers).map(Part::Poller))
    }

    /// Every link between two of ours, except those from pollers to simulated servers.
    pub fn links(self) -> impl Iterator<Item = Link> {
        let databases = (0..self.apis).filter(move |_| self.postgres).map(Link::Database);
        self.services()
            .map(Link::Bus)
            .chain((0..self.apis).map(Link::Http))
            .chain((0..self.gateways).map(Link::Socket))
            .chain(databases)
    }
}

/// A process of ours, a server of the broker, or PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Nats(usize),
    Database,
    Api(usize),
    Gateway(usize),
    Poller(usize),
}

/// What lies between two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// From a service to NATS, all servers of it.
    Bus(Part),
    /// From an api to PostgreSQL.
    Database(usize),
    /// From a poller to a simulated server.
    Backend { poller: usize, backend: usize },
    /// From clients to an api.
    Http(usize),
    /// From clients to a gateway.
    Socket(usize),
}
