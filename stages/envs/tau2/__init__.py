"""The real domains of tau2-bench: airline, retail and telecom, as inspect-evals packages them."""
