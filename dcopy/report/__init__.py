"""Tables, figures and prose, from result files alone."""
