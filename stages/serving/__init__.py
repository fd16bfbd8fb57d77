"""Model servers: endpoints, the pool of servers, and weight updates."""
