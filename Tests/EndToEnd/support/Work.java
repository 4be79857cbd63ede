import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Large maps in several threads, with enough garbage that collectors work; prints a hash: Work SEED ENTRIES */
public class Work {
  static long run(long seed, int entries) {
    Random random = new Random(seed);
    Map<Integer, String> table = new HashMap<>();
    TreeMap<String, long[]> index = new TreeMap<>();
    long hash = seed;
    for (int i = 0; i < entries; i++) {
      String text = Long.toHexString(random.nextLong()) + "-" + "swap".repeat(i % 20);
      table.put(i, text);
      index.put(text, new long[] {i, random.nextLong(), random.nextInt(8)});
      if (i % 3 == 2) index.remove(table.remove(i - 1));
    }
    for (Map.Entry<String, long[]> entry : index.entrySet())
      hash = hash * 31 + entry.getKey().hashCode() * 7L + Arrays.hashCode(entry.getValue());
    for (int i = 0; i < entries / 2; i++) {
      String text = table.get(random.nextInt(entries));
      hash = hash * 131 + (text == null ? 1 : index.get(text)[1]);
    }
    return hash;
  }

  public static void main(String[] arguments) throws Exception {
    long seed = Long.parseLong(arguments[0]);
    int entries = Integer.parseInt(arguments[1]);
    ExecutorService pool = Executors.newFixedThreadPool(2);
    List<Future<Long>> parts = new ArrayList<>();
    for (int part = 0; part < 4; part++) {
      long partSeed = seed + part;
      parts.add(pool.submit((Callable<Long>) () -> run(partSeed, entries / 4)));
    }
    long hash = 0;
    for (Future<Long> part : parts) hash = hash * 1000003 + part.get();
    pool.shutdown();
    System.out.println(Long.toHexString(hash));
  }
}
