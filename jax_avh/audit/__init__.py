"""What a data set leaks: an audit of its shards."""
