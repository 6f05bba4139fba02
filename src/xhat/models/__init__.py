"""Models: a prior, a posterior, a likelihood, an objective and a gradient on one chassis; and recipes that put them together."""
