"""asyncq beside other frameworks. Each module needs that framework, and is imported by who uses it."""
