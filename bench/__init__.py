"""What the performance figures of docs/performance.md are measured with."""
