"""Never used."""
