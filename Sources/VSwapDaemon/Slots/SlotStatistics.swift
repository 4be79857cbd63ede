/// Figures of the slot layer at about one time (each is exact, but they are read one after the other).
struct SlotStatistics: Equatable, Sendable {
  /// Objects in the compressed pool, raw pages included.
  var objects = 0
  /// What they are when decompressed: 4096 bytes each.
  var originalBytes = 0
  /// Their own bytes.
  var compressedBytes = 0
  /// Blocks in use, which is what the pool's limit counts.
  var arenaBytes = 0
  /// That limit.
  var poolLimitBytes = 0
  /// Pages in the swap cache.
  var cachedPages = 0
  /// Frames of the swap cache.
  var cacheCapacityPages = 0
  /// Pages of zeros, which take nothing but their slot.
  var zeroPages = 0
  /// Pages that were ever put into the pool, whether they have left since or not, and their bytes there.
  var storedPages = 0
  var storedBytes = 0
  /// Resident pages whose objects are kept, in case they do not change.
  var copies = 0
  /// Evictions since the start that found their page unchanged.
  var reusedCopies = 0
  /// Slots allocated, whatever holds their content.
  var slotsInUse = 0
  /// Pages whose content cannot be had any more.
  var lostPages = 0
  /// RAM that slot descriptors, frame records, the FIFO and block records have touched.
  var metadataBytes = 0
}
