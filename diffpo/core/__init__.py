"""The algorithm of the papers: types, noise process, noising, objectives, one step. Only torch is known here."""
