/// "1 page", "2 pages".
func pageCount(_ pages: Int) -> String {
  pages == 1 ? "1 page" : "\(pages) pages"
}
