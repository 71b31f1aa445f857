"""Pictures about pictures: contact sheets, projections, maps."""
