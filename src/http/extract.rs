//! Request parts, checked; every fault in FastAPI’s shape.
