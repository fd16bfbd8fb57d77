"""Model servers: endpoints, the pool of servers, new weights."""
